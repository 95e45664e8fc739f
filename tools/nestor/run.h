/* `nestor run`. */
#ifndef NESTOR_TOOLS_RUN_H
#define NESTOR_TOOLS_RUN_H

/* argv[0] is the first option. Returns the process's exit code. */
int run_command(int argc, char **argv);

#endif
