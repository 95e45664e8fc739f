#include "devices/virtio_worker.h"

#include "devices/worker_thread.h"

static void *worker_run(void *argument) {
    struct virtio_worker *worker = argument;
    pthread_mutex_lock(&worker->lock);
    while (!worker->quit) {
        if (!worker->kicked) {
            pthread_cond_wait(&worker->wake, &worker->lock);
            continue;
        }
        worker->kicked = false;
        bool wanted = worker->wanted;
        pthread_mutex_unlock(&worker->lock);
        if (wanted)
            worker->service(worker->device);
        else
            virtio_device_stopped(worker->device); /* heeded only if that was asked for */
        pthread_mutex_lock(&worker->lock);
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

int virtio_worker_start(struct virtio_worker *worker, const char *name, struct virtio_device *device,
                        void (*service)(struct virtio_device *device)) {
    *worker = (struct virtio_worker){.device = device, .service = service};
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->wake, NULL);
    int result = worker_thread_create(&worker->thread, name, worker_run, worker);
    if (result) {
        pthread_cond_destroy(&worker->wake);
        pthread_mutex_destroy(&worker->lock);
    }
    return result;
}

static void worker_set(struct virtio_worker *worker, bool *flag, bool value) {
    pthread_mutex_lock(&worker->lock);
    *flag = value;
    if (!worker->kicked) {
        worker->kicked = true;
        pthread_cond_signal(&worker->wake);
    }
    pthread_mutex_unlock(&worker->lock);
}

void virtio_worker_end(struct virtio_worker *worker) {
    worker_set(worker, &worker->quit, true);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->wake);
    pthread_mutex_destroy(&worker->lock);
}

void virtio_worker_kick(struct virtio_worker *worker) {
    pthread_mutex_lock(&worker->lock);
    if (!worker->kicked) {
        worker->kicked = true;
        pthread_cond_signal(&worker->wake);
    }
    pthread_mutex_unlock(&worker->lock);
}

void virtio_worker_want(struct virtio_worker *worker, bool wanted) {
    worker_set(worker, &worker->wanted, wanted);
}
