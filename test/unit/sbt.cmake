# The offline translator's image analysis, on samples that are assembled here.
set(sbt_samples ${CMAKE_BINARY_DIR}/test/sbt-samples)
file(MAKE_DIRECTORY ${sbt_samples})
set(sbt_sample_files)
foreach(layout old new)
  if(layout STREQUAL old)
    set(define -DOLD_LAYOUT)
  else()
    set(define)
  endif()
  add_custom_command(
    OUTPUT ${sbt_samples}/sample-${layout}.o ${sbt_samples}/sample-${layout}.elf
    COMMAND ${CMAKE_C_COMPILER} -c ${define} -o ${sbt_samples}/sample-${layout}.o ${PROJECT_SOURCE_DIR}/test/sbt/sample.S
    COMMAND ${CMAKE_C_COMPILER} -nostdlib -static -no-pie -Wl,-Ttext=0xffffffff81000000,--build-id=none
            -o ${sbt_samples}/sample-${layout}.elf ${sbt_samples}/sample-${layout}.o
    DEPENDS ${PROJECT_SOURCE_DIR}/test/sbt/sample.S VERBATIM)
  list(APPEND sbt_sample_files ${sbt_samples}/sample-${layout}.elf)
endforeach()
add_custom_target(sbt-samples DEPENDS ${sbt_sample_files})

foreach(test patch blocks)
  add_executable(sbt_${test}_test ${CMAKE_CURRENT_LIST_DIR}/sbt_${test}.c)
  target_compile_definitions(sbt_${test}_test PRIVATE SAMPLE_DIRECTORY="${sbt_samples}")
  target_link_libraries(sbt_${test}_test PRIVATE nestor-sbt)
  add_dependencies(sbt_${test}_test sbt-samples)
  set_target_properties(sbt_${test}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin/tests)
endforeach()
