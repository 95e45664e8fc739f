"""count_results.py STATUS RECORD...: print "N passed, N failed[, N skipped]" over lit's JSON records, after the end of
what each failed test printed.

STATUS is the exit status of what ran before; when it is not 0, or a record is missing, that is one failure more. Exits
with 1 if anything failed or nothing passed.
"""
import json
import sys

PASSED = ("PASS", "FLAKYPASS", "XFAIL")
TAIL_LINES = 40  # of a failed test's output: enough for FileCheck's complaint with its surroundings


def main():
    passed, skipped = 0, 0
    failed = [f"set-up (exit status {sys.argv[1]})"] if sys.argv[1] != "0" else []
    for record in sys.argv[2:]:
        try:
            with open(record) as f:
                tests = json.load(f)["tests"]
        except (OSError, ValueError, KeyError) as error:
            failed.append(f"{record}: no record of a test run: {error}")
            continue
        for test in tests:
            if test["code"] in PASSED:
                passed += 1
            elif test["code"] == "UNSUPPORTED":
                skipped += 1
            elif test["code"] != "EXCLUDED":
                failed.append(f"{test['name']} ({test['code']}, in {record})")
                print(f"--- the end of what {test['name']} printed")
                print("\n".join(test.get("output", "").splitlines()[-TAIL_LINES:]))
    for name in failed:
        print(f"failed: {name}")
    print(f"{passed} passed, {len(failed)} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
