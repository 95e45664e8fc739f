nestor_add_fuzzer(fuzz_virtio nestor-devices ${CMAKE_CURRENT_LIST_DIR}/fuzz_virtio.c)
