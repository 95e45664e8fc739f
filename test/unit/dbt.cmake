# Unit tests of the translator's parts that need no guest.
add_executable(dbt_signals_test ${CMAKE_CURRENT_LIST_DIR}/dbt_signals.c)
target_link_libraries(dbt_signals_test PRIVATE nestor-dbt)
set_target_properties(dbt_signals_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
