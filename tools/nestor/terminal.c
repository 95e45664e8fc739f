#define _GNU_SOURCE
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/diag.h"

static struct {
    struct termios original, raw;
    int keeper_pipe; /* its end of file tells the keeper that this process is gone */
    pid_t keeper;
    volatile sig_atomic_t is_raw;
} terminal = {.keeper_pipe = -1};

#define KEEPER_DISMISSED 'd'

/* The keeper: nothing but the terminal and the pipe, deaf to the signals that end its parent. All are
 * blocked, SIGTTOU too: a background process may then set the terminal. */
static void keep_terminal(int pipe_end) {
    char message;
    ssize_t count;
    setsid(); /* the shell's job control does not wait for it */
    prctl(PR_SET_NAME, "nestor-tty");
    int pipe_fd = dup3(pipe_end, 3, O_CLOEXEC) == 3 ? 3 : pipe_end;
    close_range(STDOUT_FILENO, STDERR_FILENO, 0);
    if (pipe_fd == 3)
        close_range(4, ~0u, 0);
    do
        count = read(pipe_fd, &message, 1);
    while (count < 0 && errno == EINTR);
    if (count == 0)
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal.original);
    _exit(0);
}

static int start_keeper(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -errno;
    /* Blocked from its first moment: its parent may be gone, and its group hung up, before it runs at all. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pid_t child = fork();
    int error = errno;
    if (!child)
        keep_terminal(ends[0]);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (child < 0) {
        close(ends[0]);
        close(ends[1]);
        return -error;
    }
    close(ends[0]);
    terminal.keeper_pipe = ends[1];
    terminal.keeper = child;
    return 0;
}

int terminal_guard(void) {
    if (terminal.keeper || !isatty(STDIN_FILENO))
        return 0;
    if (tcgetattr(STDIN_FILENO, &terminal.original)) {
        int error = errno;
        diag_error("the terminal on standard input cannot be read: %s; give none to --serial and --console",
                   strerror(error));
        return -error;
    }
    int result = start_keeper();
    if (result)
        diag_error("no process can be started to guard the terminal: %s", strerror(-result));
    return result;
}

int terminal_enter_raw(void) {
    int result = terminal_guard();
    if (result || !terminal.keeper || terminal.is_raw)
        return result;
    terminal.raw = terminal.original;
    cfmakeraw(&terminal.raw);
    /* Output keeps its processing, so that messages on the same terminal start at the left margin. */
    terminal.raw.c_oflag = terminal.original.c_oflag;
    terminal.is_raw = 1;
    if (tcsetattr(STDIN_FILENO, TCSANOW, &terminal.raw)) {
        result = -errno;
        diag_error("the terminal on standard input cannot be set: %s; give none to --serial and --console",
                   strerror(-result));
        terminal_restore();
    }
    return result;
}

bool terminal_is_raw(void) {
    return terminal.is_raw;
}

bool terminal_size(uint16_t *columns, uint16_t *rows) {
    struct winsize size;
    if (!isatty(STDIN_FILENO) || ioctl(STDIN_FILENO, TIOCGWINSZ, &size))
        return false;
    *columns = size.ws_col;
    *rows = size.ws_row;
    return true;
}

void terminal_reenter_raw(void) {
    if (terminal.is_raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal.raw);
}

void terminal_restore(void) {
    int error = errno;
    if (terminal.is_raw) {
        terminal.is_raw = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal.original);
    }
    if (terminal.keeper) {
        pid_t keeper = terminal.keeper;
        const char message = KEEPER_DISMISSED;
        terminal.keeper = 0;
        if (write(terminal.keeper_pipe, &message, 1) == 1)
            waitpid(keeper, NULL, 0);
        close(terminal.keeper_pipe);
        terminal.keeper_pipe = -1;
    }
    errno = error;
}
