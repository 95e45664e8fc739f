# Unit tests of the system half of the processor: privilege transfers, exceptions, registers, the CPU model.
foreach(test long legacy registers model)
  add_executable(cpu_${test}_test ${CMAKE_CURRENT_LIST_DIR}/cpu_${test}.c ${CMAKE_CURRENT_LIST_DIR}/cpu_guest.c)
  target_link_libraries(cpu_${test}_test PRIVATE nestor-cpu)
  set_target_properties(cpu_${test}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
endforeach()
