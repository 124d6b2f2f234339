"""Write tests/golden.json anew, to be read as a diff: `python scripts/golden.py`."""

import json
import sys
from pathlib import Path

root = Path(__file__).parent.parent
sys.path.insert(0, str(root))

from tests.test_contract import ANALYSES, GOLDEN, result_of  # noqa: E402

numbers = {
    name: result_of(name).to_frame().select_dtypes("float").sum().round(3).to_dict()
    for name in ANALYSES
}
GOLDEN.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
