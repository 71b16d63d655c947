/* What build.rs makes bindings of. */
#include <spdk/stdinc.h>
#include <spdk/version.h>
#include <spdk/config.h>
#include <spdk/env.h>
#include <spdk/thread.h>
#include <spdk/event.h>
#include <spdk/log.h>
#include <spdk/json.h>
#include <spdk/jsonrpc.h>
#include <spdk/rpc.h>
#include <spdk/bdev.h>
#include <spdk/bdev_module.h>
#include <spdk/vhost.h>
