"""Write the table of docs/families.md anew from the contract: `python scripts/families.py`."""

import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
root = Path(__file__).parent.parent
sys.path.insert(0, str(root))
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402

from interp.testing.table import causes, head, row  # noqa: E402
from tests.families import EVERY  # noqa: E402
from tests.test_families import DOCS, examined  # noqa: E402

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
MARK = "<!-- made by scripts/families.py: do not edit below -->\n"
families = sorted(EVERY)
why = causes({family: examined(family) for family in families})
table = "\n".join([head(), *(row(family, examined(family)) for family in families)])
text = DOCS.read_text().partition(MARK)[0]
DOCS.write_text(f"{text}{MARK}\n{table}\n\n## Why not\n\n" + "\n".join(why) + "\n")
