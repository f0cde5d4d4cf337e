"""Makes every fixture: `python make.py`, or a part: `python make.py models|ladder|cases [NAME…]`."""

import sys
import time

import common


def main(parts):
    common.quiet()
    start = time.time()
    which = parts[:1] or ["all"]
    if which[0] in ("all", "models"):
        import adapters
        import controls
        import images
        import loras
        import maps
        import models

        images.build()
        models.build()
        adapters.build()
        loras.build()
        controls.build()
        maps.build()
        common.write_json(common.FIXTURES / "versions.json", common.versions())
    if which[0] in ("all", "ladder"):
        import ladder

        ladder.build()
    if which[0] in ("all", "cases"):
        import cases

        cases.build(set(parts[1:]) or None)
    for file in common.FIXTURES.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    size = sum(f.stat().st_size for f in common.FIXTURES.rglob("*") if f.is_file())
    print(f"{size / 1e6:.2f} MB in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
