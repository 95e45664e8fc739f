/* Writes its argument to the debug-exit port at 0x501 from ring 3. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>

int main(int argc, char **argv) {
    if (argc != 2 || ioperm(0x501, 1, 1) != 0) {
        perror("debug_exit");
        return 1;
    }
    outb((unsigned char)atoi(argv[1]), 0x501);
    puts("debug_exit: still here");
    return 0;
}
