"""Print the command that README.md gives under a marker, so that CI runs the very words that people copy.

A marker is an HTML comment on the line before a fenced block: `<!-- ci:test -->`.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def readme_command(name: str) -> str:
    """Return the one fenced block that follows the marker `name`; exit with a message where there is none."""
    pattern = rf"^<!-- ci:{re.escape(name)} -->\n```(?:bash|sh)\n(.*?)^```$"
    blocks = re.findall(pattern, README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        sys.exit(f"README.md: expected one shell block marked <!-- ci:{name} -->, found {len(blocks)}")
    return str(blocks[0])


if __name__ == "__main__":
    sys.stdout.write(readme_command(sys.argv[1]))
