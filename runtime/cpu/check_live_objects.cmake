# cmake -DNM=nm -DOBJECTS="a.o;b.o" -DLIBRARY=lib.a -P check_live_objects.cmake
# Fails when one of OBJECTS refers to a symbol that is neither defined in LIBRARY nor allowed here.
# guest_mem_touch: mem/touch.c is compiled likewise.
set(ALLOWED guest_mem_touch madvise mmap munmap pages_map_large _GLOBAL_OFFSET_TABLE_)

execute_process(COMMAND ${NM} --defined-only --format=posix ${LIBRARY} OUTPUT_VARIABLE defined COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+ [TDBRVWC] [^\n]*" defined "${defined}")
list(TRANSFORM defined REPLACE " .*" "")

foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} --undefined-only --format=posix ${object} OUTPUT_VARIABLE needed COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n ]+ [Uwv]" needed "${needed}")
  list(TRANSFORM needed REPLACE " .*" "")
  list(REMOVE_ITEM needed ${ALLOWED} ${defined})
  if(needed)
    message(FATAL_ERROR "${object} calls ${needed}: it runs with the guest's vector state live and must not")
  endif()
endforeach()
