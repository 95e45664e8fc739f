nestor_add_fuzzer(fuzz_devices nestor-board ${CMAKE_CURRENT_LIST_DIR}/fuzz_devices.c)
