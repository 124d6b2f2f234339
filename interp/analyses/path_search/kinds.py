"""What has as many tries as the search, and for which prompts it is told."""

SEARCH, RANDOM, FIXED = "search", "random paths", "one fixed path"
SHUFFLED, CHANCE, SAMPLED = "search for another answer", "its chance", "sampled answers"
WRONG, RIGHT, EVERY = "wrong answers", "right answers", "all prompts"
