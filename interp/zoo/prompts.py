"""Write the built-in tasks of the synthetic world: `python -m interp.zoo.prompts`."""

from pathlib import Path

from interp.tasks import Prompt, Task
from interp.zoo.evaluate import queries
from interp.zoo.world import World


def build_tasks(world: World) -> list[Task]:
    """Return `one-hop` and `two-hop`, each query after three sentences of context, tagged by what was shown."""
    one_hop: list[Prompt] = []
    two_hop: list[Prompt] = []
    for kind, pairs in queries(world).items():
        for words, answer in pairs:
            text = " ".join(words[1:])
            if kind == "one-hop":
                entity, relation = words[-2:]
                held_out = "held-out" if (entity, relation) in world.held_out else "trained"
                one_hop.append(Prompt(f"{entity}-{relation}", text, answer=answer, tags={"set": held_out}))
            else:
                entity, first, second = words[-3:]
                bridge = world.facts[entity, first]
                two_hop.append(
                    Prompt(
                        f"{entity}-{first}-{second}",
                        text,
                        answer=answer,
                        wrong=bridge if bridge != answer else None,
                        subject=f"{entity} {first}",
                        bridge=bridge,
                        tags={"set": kind},
                    )
                )
    return [Task("one-hop", tuple(one_hop)), Task("two-hop", tuple(two_hop))]


def main(out: Path = Path("data/tasks")) -> None:
    """Write each task as JSON lines."""
    out.mkdir(parents=True, exist_ok=True)
    for task in build_tasks(World()):
        task.to_jsonl(out / f"{task.name}.jsonl")


if __name__ == "__main__":
    main()
