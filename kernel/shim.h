/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the engine needs of the block layer and cannot reach from Rust: inline functions, macros
 * that declare static lock classes, and variadic macros. No policy in here.
 */
#ifndef DATTOBD_SHIM_H
#define DATTOBD_SHIM_H

#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/part_stat.h>
#include <linux/tracepoint.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

void dbd_tracepoint_sync(void);
struct workqueue_struct *dbd_alloc_workqueue(const char *name, unsigned int minor);
struct gendisk *dbd_alloc_snapshot_disk(struct block_device *origin);
struct gendisk *dbd_alloc_shadow_disk(void);
bool dbd_disk_close_if_unused(struct gendisk *disk, bool *closing);
void dbd_disk_reopen(struct gendisk *disk, bool *closing);
bool dbd_queue_is_mq(struct block_device *bdev);
void dbd_queue_drain(struct block_device *bdev);
void dbd_requests_finish(struct block_device *bdev);
bool dbd_writes_settle(struct block_device *bdev, unsigned int ms);
void dbd_bio_inc_remaining(struct bio *bio);
void dbd_bio_read(struct bio *bio, unsigned int skip, unsigned int len, u8 *to);
void dbd_bio_set_dev(struct bio *bio, struct block_device *bdev);
void dbd_bio_give(struct bio *bio, unsigned int skip, unsigned int len, const u8 *from);
void dbd_bio_fill(struct bio *bio, unsigned int skip, unsigned int len,
		  struct page *src, unsigned int src_offset);
void dbd_flush_delayed(struct work_struct *work);
void dbd_bio_charge_nobody(struct bio *bio);
void dbd_bio_add_memory(struct bio *bio, u8 *page);
struct page *dbd_alloc_pages(unsigned int order);
struct page *dbd_alloc_reserve_page(void);
unsigned int dbd_page_order(struct page *page);
void dbd_get_page(struct page *page);
void dbd_put_page(struct page *page);
bool dbd_page_is_sole(struct page *page);
u64 dbd_memory(void);
void dbd_zero_rest_of_page(struct page *page, unsigned int offset);
void dbd_gate_wait(atomic64_t *count);
void dbd_gate_wake(atomic64_t *count);
void *dbd_alloc_leaf(gfp_t gfp);
extern const gfp_t dbd_gfp_leaf_atomic, dbd_gfp_leaf_sleep, dbd_gfp_leaf_control;
extern const gfp_t dbd_gfp_noio, dbd_gfp_nowait;
bool dbd_killed(void);
unsigned int dbd_noio_save(void);
void dbd_noio_restore(unsigned int flags);

#endif
