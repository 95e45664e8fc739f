# The cache format. The made-up files are the fuzzer's, too.
set(cache_dir ${CMAKE_CURRENT_LIST_DIR})
add_library(cache-sample OBJECT ${cache_dir}/cache_sample.c)
target_include_directories(cache-sample PUBLIC ${cache_dir})
target_link_libraries(cache-sample PUBLIC nestor-cache-format)

foreach(test format load parts)
  add_executable(cache_${test}_test ${cache_dir}/cache_${test}.c)
  target_link_libraries(cache_${test}_test PRIVATE cache-sample nestor-cache-format Threads::Threads)
  set_target_properties(cache_${test}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
endforeach()

# Makes cache files for the tests of nestor-cache.
add_executable(cache-sample-tool ${cache_dir}/cache_sample_main.c)
target_link_libraries(cache-sample-tool PRIVATE cache-sample nestor-cache-format)
set_target_properties(cache-sample-tool PROPERTIES OUTPUT_NAME cache-sample)
