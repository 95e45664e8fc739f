# Unit tests of the virtio family: each drives a device as a guest would.
foreach(test blk net small)
  add_executable(virtio_${test}_test ${CMAKE_CURRENT_LIST_DIR}/virtio_${test}.c
                                     ${CMAKE_CURRENT_LIST_DIR}/virtio_guest.c)
  target_link_libraries(virtio_${test}_test PRIVATE nestor-devices)
  set_target_properties(virtio_${test}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
endforeach()
