/*
 * A client inside an application of SPDK, for what bdevperf cannot be told to do: to write once to
 * each of some places, one after the other. Built by measure.rs and preloaded; the application then
 * answers
 *
 *   first_writes {"bdev": NAME, "step": BYTES, "count": N}  ->  [NS, NS, ...]
 *
 * with how long each write of 4096 bytes took, at 0, step, 2 * step, ... bytes. Reads come first,
 * so that the bdev has met its caller.
 */
#include "spdk/bdev.h"
#include "spdk/env.h"
#include "spdk/json.h"
#include "spdk/rpc.h"
#include "spdk/string.h"
#include "spdk/thread.h"

#define BYTES 4096
#define READS 1000
#define COUNT_MAX 1024

struct run {
	struct spdk_jsonrpc_request *request;
	struct spdk_bdev_desc *desc;
	struct spdk_io_channel *channel;
	void *memory;
	uint64_t step, count, reads, writes, begun;
	uint64_t ticks[COUNT_MAX];
};

struct wish {
	char *bdev;
	uint64_t step, count;
};

static const struct spdk_json_object_decoder wishes[] = {
	{"bdev", offsetof(struct wish, bdev), spdk_json_decode_string, false},
	{"step", offsetof(struct wish, step), spdk_json_decode_uint64, false},
	{"count", offsetof(struct wish, count), spdk_json_decode_uint64, false},
};

static void
end(struct run *run, const char *error)
{
	if (run->channel) {
		spdk_put_io_channel(run->channel);
	}
	if (run->desc) {
		spdk_bdev_close(run->desc);
	}
	spdk_dma_free(run->memory);
	if (error) {
		spdk_jsonrpc_send_error_response(run->request, SPDK_JSONRPC_ERROR_INTERNAL_ERROR, error);
	} else {
		struct spdk_json_write_ctx *json = spdk_jsonrpc_begin_result(run->request);

		spdk_json_write_array_begin(json);
		for (uint64_t i = 0; i < run->count; i++) {
			double ns = 1e9 * (double)run->ticks[i] / (double)spdk_get_ticks_hz();

			spdk_json_write_uint64(json, (uint64_t)ns);
		}
		spdk_json_write_array_end(json);
		spdk_jsonrpc_end_result(run->request, json);
	}
	free(run);
}

static void step(void *arg);

static void
done(struct spdk_bdev_io *io, bool good, void *arg)
{
	struct run *run = arg;
	uint64_t took = spdk_get_ticks() - run->begun;

	spdk_bdev_free_io(io);
	if (!good) {
		end(run, "an I/O failed");
		return;
	}
	if (run->reads < READS) {
		run->reads++;
	} else {
		run->ticks[run->writes++] = took;
	}
	/* By a message: whoever answers on the spot must not be called from within his answer. */
	spdk_thread_send_msg(spdk_get_thread(), step, run);
}

static void
step(void *arg)
{
	struct run *run = arg;
	int rc;

	if (run->writes == run->count) {
		end(run, NULL);
		return;
	}
	run->begun = spdk_get_ticks();
	if (run->reads < READS) {
		rc = spdk_bdev_read(run->desc, run->channel, run->memory, 0, BYTES, done, run);
	} else {
		rc = spdk_bdev_write(run->desc, run->channel, run->memory, run->writes * run->step,
				     BYTES, done, run);
	}
	if (rc != 0) {
		end(run, spdk_strerror(-rc));
	}
}

static void
event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *arg)
{
}

static void
first_writes(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct wish wish = {};
	struct run *run = calloc(1, sizeof(*run));

	if (!run || spdk_json_decode_object(params, wishes, SPDK_COUNTOF(wishes), &wish) != 0 ||
	    wish.count > COUNT_MAX) {
		spdk_jsonrpc_send_error_response(request, SPDK_JSONRPC_ERROR_INVALID_PARAMS,
						 "bdev, step and count, please");
		free(run);
		free(wish.bdev);
		return;
	}
	run->request = request;
	run->step = wish.step;
	run->count = wish.count;
	run->memory = spdk_dma_zmalloc(BYTES, BYTES, NULL);
	if (spdk_bdev_open_ext(wish.bdev, true, event, NULL, &run->desc) == 0) {
		run->channel = spdk_bdev_get_io_channel(run->desc);
	}
	free(wish.bdev);
	if (!run->memory || !run->channel) {
		end(run, "the bdev cannot be opened");
		return;
	}
	step(run);
}
SPDK_RPC_REGISTER("first_writes", first_writes, SPDK_RPC_RUNTIME)
