/* Opening the host end of a serial port, by kind. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "base/diag.h"
#include "serial_private.h"
#include "terminal.h"

int serial_open_stdio(struct serial_port *port) {
    port->in = STDIN_FILENO;
    port->out = STDOUT_FILENO;
    port->is_connected = true;
    int result = terminal_enter_raw();
    port->has_escape = terminal_is_raw();
    return result;
}

int serial_open_file(struct serial_port *port, const char *path) {
    port->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0644);
    if (port->out < 0) {
        int error = errno;
        diag_error("--%s: '%s' cannot be written: %s; give a path in a writable directory", port->option,
                   path, strerror(error));
        return -error;
    }
    port->is_connected = true;
    return 0;
}

int serial_open_pty(struct serial_port *port) {
    struct termios settings;
    char name[128];
    port->pty = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (port->pty < 0 || grantpt(port->pty) || unlockpt(port->pty) ||
        ptsname_r(port->pty, name, sizeof name)) {
        int error = errno;
        diag_error("--%s: no pseudo-terminal can be made: %s; use unix=PATH", port->option, strerror(error));
        return -error;
    }
    /* Raw from the start. Opening and closing it also makes poll() say whether somebody has it open. */
    int other_side = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (other_side >= 0) {
        if (!tcgetattr(other_side, &settings)) {
            cfmakeraw(&settings);
            tcsetattr(other_side, TCSANOW, &settings);
        }
        close(other_side);
    }
    char line[160];
    int length = snprintf(line, sizeof line, "nestor: --%s: %s\n", port->option, name);
    return write(STDERR_FILENO, line, (size_t)length) < 0 ? -errno : 0;
}

/* A socket file that nobody listens on is left over from a killed process and may go. The probe is of another
 * type than the listener, so that a living one refuses it (EPROTOTYPE) without ever seeing it. */
static bool is_stale_socket(const struct sockaddr_un *address) {
    struct stat status;
    if (lstat(address->sun_path, &status) || !S_ISSOCK(status.st_mode))
        return false;
    int probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool refused = probe >= 0 && connect(probe, (const struct sockaddr *)address, sizeof *address) &&
                   errno == ECONNREFUSED;
    if (probe >= 0)
        close(probe);
    return refused;
}

int serial_open_unix(struct serial_port *port, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        diag_error("--%s: socket path '%s' is longer than %zu bytes; give a shorter one", port->option, path,
                   sizeof address.sun_path - 1);
        return -ENAMETOOLONG;
    }
    strcpy(address.sun_path, path);
    if (is_stale_socket(&address))
        unlink(path);
    port->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0077); /* a console is its user's alone */
    int failed = port->listener < 0 || bind(port->listener, (struct sockaddr *)&address, sizeof address);
    int error = errno;
    umask(mask);
    if (!failed && listen(port->listener, 4)) {
        failed = 1;
        error = errno;
        unlink(path);
    }
    if (failed) {
        diag_error("--%s: socket '%s' cannot be made: %s; %s", port->option, path, strerror(error),
                   error == EADDRINUSE ? "another process uses it, or it is another file: give a new path"
                                       : "give a path in a writable directory");
        return -error;
    }
    port->unlink_at = strdup(path);
    return port->unlink_at ? 0 : -ENOMEM;
}
