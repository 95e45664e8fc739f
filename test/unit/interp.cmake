# Unit tests of the interpreter: against the processor itself, and in the modes that the processor is not in.
foreach(test native modes random)
  add_executable(interp_${test}_test ${CMAKE_CURRENT_LIST_DIR}/interp_${test}.c
                                     ${CMAKE_CURRENT_LIST_DIR}/interp_guest.c)
  target_link_libraries(interp_${test}_test PRIVATE nestor-interp)
  set_target_properties(interp_${test}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
endforeach()
