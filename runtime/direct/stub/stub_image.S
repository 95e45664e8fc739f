/* The stub program as bytes in the launcher's read-only data. STUB_IMAGE is the built program's path. */
    .section .rodata
    .globl direct_stub_image, direct_stub_image_end
    .balign 16
direct_stub_image:
    .incbin STUB_IMAGE
direct_stub_image_end:
    .section .note.GNU-stack, "", @progbits
