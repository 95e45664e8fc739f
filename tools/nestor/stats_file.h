/* Where --stats goes: counters as one JSON object. */
#ifndef NESTOR_TOOLS_STATS_FILE_H
#define NESTOR_TOOLS_STATS_FILE_H

#include <cjson/cJSON.h>

#include "base/types.h"

/* Write tree to path, replacing the file whole: a reader sees the old or the new one, never half of one. "-"
 * is standard output. 0, or -errno after one line: no reason to stop. */
int stats_file_write(const char *path, const cJSON *tree);
/* The same to standard error. */
void stats_file_tell(const cJSON *tree);

#endif
