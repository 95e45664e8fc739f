"""A lit format: every program in a directory of the build is one test, which passes when it exits with 0.

Unit tests and fuzzers are such programs. A fuzzer runs once by itself (a fixed pseudo-random
sequence) and once over its seeds, the files in test/fuzz/seeds/<name>, if it has any.
"""
import os

import lit.formats
import lit.Test
import lit.util


class ProgramFormat(lit.formats.FileBasedTest):
    def __init__(self, directory, seeds=None):
        self.directory = directory
        self.seeds = seeds

    def getTestsInDirectory(self, suite, path_in_suite, lit_config, local_config):
        # Once, for the directory that is so configured; lit asks again for those below it.
        if len(path_in_suite) != 1 or not os.path.isdir(self.directory):
            return
        for name in sorted(os.listdir(self.directory)):
            path = os.path.join(self.directory, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                yield lit.Test.Test(suite, path_in_suite + (name,), local_config)

    def execute(self, test, lit_config):
        name = test.path_in_suite[-1]
        program = os.path.join(self.directory, name)
        seeds = os.path.join(self.seeds, name) if self.seeds else None
        runs = [[program]]
        if seeds and os.path.isdir(seeds):
            runs.append([program] + sorted(os.path.join(seeds, seed) for seed in os.listdir(seeds)))
        for command in runs:
            try:
                out, err, status = lit.util.executeCommand(
                    command, env=test.config.environment, timeout=lit_config.maxIndividualTestTime)
            except lit.util.ExecuteCommandTimeoutException as late:
                seconds = lit_config.maxIndividualTestTime
                return lit.Test.TIMEOUT, f"{program}: no end in {seconds} s\n{late.out}{late.err}"
            if status != 0:
                return lit.Test.FAIL, f"{' '.join(command)}\nexit status {status}\n{out}{err}"
        return lit.Test.PASS, ""
