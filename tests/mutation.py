#!/usr/bin/env python3
"""Changes the code in small ways, one at a time, and checks that the tests fail.

    python3 tests/mutation.py MODULE [--shard K/N] [--sample COUNT] [--seed SEED] [--list]

MODULE is one of `MODULES`. A seeded sample of its mutants (default 300, or all if there are fewer) is tested by
cargo-mutants (`cargo install --locked cargo-mutants`), shard K of N of them. First the unit tests of the module
run, which kill most of them, then all tests of the library for those that are left. Results are kept in
`target/mutation/MODULE-K-N`; a run that was stopped goes on there. A shard takes hours, so CI does not run it.

Prints how many mutants were killed, and each survivor. Survivors that change nothing (`|` for `^` of bits that
are never set together) or only what nobody depends on (a capacity, the text for developers) are expected.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Name: files, features, filters of the tests that run first.
MODULES = {
    "zmtp": (["src/zmtp/*.rs", "src/zmtp/**/*.rs"], "curve", ["zmtp::", "socket::engine"]),
    "protocol": (["src/protocol/*.rs", "src/protocol/**/*.rs"], "sentinel,curve", ["protocol::"]),
    "socket": (["src/socket/engine/*.rs"], "curve", ["socket::"]),
    "control": (["src/sentinel/control.rs", "src/sentinel/control/*.rs"], "sentinel,curve", ["sentinel::"]),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", choices=MODULES)
    parser.add_argument("--shard", default="1/1", metavar="K/N")
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the shard's mutants and end")
    return parser.parse_args()


def selected(files):
    """Options of cargo-mutants for the module's files without its tests."""
    options = ["--exclude", "**/tests/**", "--exclude", "**/tests.rs", "--exclude", "**/simulation/**"]
    for pattern in files:
        options += ["--file", pattern]
    return options


def sample(files, given):
    command = ["cargo", "mutants", "--list", "--json", *selected(files)]
    listed = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    names = sorted(mutant["name"] for mutant in listed)
    drawn = random.Random(given.seed).sample(names, min(given.sample, len(names)))
    shard, shards = map(int, given.shard.split("/"))
    return len(names), sorted(drawn)[shard - 1::shards]


def run(files, features, names, folder, filters):
    """Tests the mutants that no earlier run has killed."""
    exact = "|".join(f"^{re.escape(name)}$" for name in names)
    command = [
        "cargo", "mutants", "--iterate", "--no-shuffle", *selected(files), "--re", exact, "--output", str(folder),
        "--no-default-features", "--features", features, "--cargo-arg=--lib", "--colors", "never",
        "--minimum-test-timeout", "60", "--", "--", *filters,
    ]
    # 2 and 3: some were missed, or ended by their time limit.
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code not in (0, 2, 3):
        sys.exit(f"cargo mutants ended with {code}")


def results(folder, ending):
    found = set()
    for path in folder.glob(f"mutants.out*/*{ending}.txt"):
        found.update(path.read_text().splitlines())
    return found


def main():
    given = arguments()
    files, features, filters = MODULES[given.module]
    total, names = sample(files, given)
    if given.list:
        print("\n".join(names))
        return
    folder = ROOT / "target" / "mutation" / f"{given.module}-{given.shard.replace('/', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    run(files, features, names, folder, filters)
    run(files, features, names, folder, [])
    killed = results(folder, "caught") | results(folder, "timeout")
    unviable = results(folder, "unviable") - killed
    left = set(names) - killed - unviable
    count = len(names) - len(unviable)
    print(f"{given.module}: {len(names)} of {total} mutants, {len(unviable)} do not compile; of {count} the tests kill "
          f"{count - len(left)} ({100 * (count - len(left)) / max(count, 1):.1f} %)")
    for name in sorted(left):
        print(f"  survives: {name}")


if __name__ == "__main__":
    main()
