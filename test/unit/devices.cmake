# Unit tests of the platform: device cores, the bus and the board.
foreach(test timer lapic pic clocks serial pci)
  add_executable(devices_${test}_test ${CMAKE_CURRENT_LIST_DIR}/devices_${test}.c)
  target_link_libraries(devices_${test}_test PRIVATE nestor-devices)
  set_target_properties(devices_${test}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
endforeach()
add_executable(devices_board_test ${CMAKE_CURRENT_LIST_DIR}/devices_board.c)
target_link_libraries(devices_board_test PRIVATE nestor-machine)
set_target_properties(devices_board_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
