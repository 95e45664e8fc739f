# Unit tests of direct execution's parts that need no process: the scan of pages, guest tables, the tier's policy,
# RAM as a memory file.
foreach(test memory scan tables tier)
  add_executable(direct_${test}_test ${CMAKE_CURRENT_LIST_DIR}/direct_${test}.c ${CMAKE_CURRENT_LIST_DIR}/cpu_guest.c)
  target_link_libraries(direct_${test}_test PRIVATE nestor-direct)
  set_target_properties(direct_${test}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
endforeach()
