# Loaders and launcher. The kernel images made here are the loaders' fuzzer's seeds too.
set(boot_dir ${CMAKE_CURRENT_LIST_DIR})
pkg_check_modules(BOOT_CODECS REQUIRED IMPORTED_TARGET zlib liblzma libzstd liblz4)

add_library(boot-images OBJECT ${boot_dir}/boot_images.c)
target_include_directories(boot-images PUBLIC ${boot_dir})
target_link_libraries(boot-images PUBLIC nestor-base PkgConfig::BOOT_CODECS)

add_executable(boot_loaders_test ${boot_dir}/boot_loaders.c)
target_link_libraries(boot_loaders_test PRIVATE boot-images nestor-boot)

add_executable(boot_launcher_test ${boot_dir}/boot_launcher.c)
target_link_libraries(boot_launcher_test PRIVATE nestor-launcher)
set_target_properties(boot_loaders_test boot_launcher_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY
                      ${CMAKE_BINARY_DIR}/bin/tests)
