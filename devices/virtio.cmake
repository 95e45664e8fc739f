# The virtio family and its backends, as part of nestor-devices.
target_sources(nestor-devices PRIVATE
  disk_engine.c
  disk_raw.c
  disk_threads.c
  disk_uring.c
  net_offload.c
  net_user.c
  net_user_bound.c
  virtio_blk.c
  virtio_console.c
  virtio_device.c
  virtio_net.c
  virtio_net_filter.c
  virtio_pci.c
  virtio_queue.c
  virtio_rng.c
  virtio_worker.c
  worker_thread.c
)
pkg_check_modules(LIBURING REQUIRED IMPORTED_TARGET liburing)
# Not by pkg-config: its file asks for GLib's headers, which libslirp's own do not need.
find_path(LIBSLIRP_INCLUDE_DIR libslirp.h PATH_SUFFIXES slirp REQUIRED)
find_library(LIBSLIRP_LIBRARY slirp REQUIRED)
target_include_directories(nestor-devices PRIVATE ${LIBSLIRP_INCLUDE_DIR})
target_link_libraries(nestor-devices PUBLIC PkgConfig::LIBURING ${LIBSLIRP_LIBRARY})
