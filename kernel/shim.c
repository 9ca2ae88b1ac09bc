// SPDX-License-Identifier: GPL-2.0-only
/* See shim.h. Every function here wraps one inline function or macro of the kernel. */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/part_stat.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>

#include "shim.h"

/* May sleep. After it no probe that was unregistered before still runs. */
void dbd_tracepoint_sync(void)
{
	tracepoint_synchronize_unregister();
}

/*
 * WQ_MEM_RECLAIM: writeback waits for this queue, so it needs a rescuer of its own. No WQ_HIGHPRI: a worker that
 * preempts whoever submits hands back one write at a time; one that does not gets several.
 */
struct workqueue_struct *dbd_alloc_workqueue(const char *name, unsigned int minor)
{
	return alloc_workqueue("%s/%u", WQ_MEM_RECLAIM | WQ_UNBOUND, 0, name, minor);
}

/*
 * A read-only disk with the limits of @origin, whose bios it passes on as clones: block sizes and
 * alignment must be the origin's, everything that changes data is off.
 */
struct gendisk *dbd_alloc_snapshot_disk(struct block_device *origin)
{
	struct queue_limits lim;

	blk_set_stacking_limits(&lim);
	queue_limits_stack_bdev(&lim, origin, 0, "datto");
	lim.features &= BLK_FEAT_ROTATIONAL;
	lim.max_hw_discard_sectors = 0;
	lim.max_user_discard_sectors = 0;
	lim.max_secure_erase_sectors = 0;
	lim.max_write_zeroes_sectors = 0;
	lim.max_hw_wzeroes_unmap_sectors = 0;
	lim.max_user_wzeroes_unmap_sectors = 0;
	lim.chunk_sectors = 0;
	return blk_alloc_disk(&lim, NUMA_NO_NODE);
}

/* Bios reach it only by redirection, past all checks against its limits. */
struct gendisk *dbd_alloc_shadow_disk(void)
{
	struct queue_limits lim = { };

	return blk_alloc_disk(&lim, NUMA_NO_NODE);
}

/*
 * Sets *closing, which the disk's open() looks at under the same mutex, when nobody holds the disk
 * open. open_mutex makes "no opener" and "no further opener" one step.
 */
bool dbd_disk_close_if_unused(struct gendisk *disk, bool *closing)
{
	bool unused;

	mutex_lock(&disk->open_mutex);
	unused = !disk_openers(disk);
	if (unused)
		WRITE_ONCE(*closing, true);
	mutex_unlock(&disk->open_mutex);
	return unused;
}

void dbd_disk_reopen(struct gendisk *disk, bool *closing)
{
	mutex_lock(&disk->open_mutex);
	WRITE_ONCE(*closing, false);
	mutex_unlock(&disk->open_mutex);
}

bool dbd_queue_is_mq(struct block_device *bdev)
{
	return queue_is_mq(bdev_get_queue(bdev));
}

/*
 * Waits until every bio that had passed the probe of a request-based device is completed. A task may have
 * been preempted between the probe and the queue, outside of RCU: such tasks are waited for first.
 */
void dbd_queue_drain(struct block_device *bdev)
{
	struct request_queue *q = bdev_get_queue(bdev);
	unsigned int flags;

	synchronize_rcu_tasks();
	flags = blk_mq_freeze_queue(q);
	blk_mq_unfreeze_queue(q, flags);
}

/*
 * Requests look at their block device once more, for its statistics, when their bios have ended already.
 * Waits until those have, too. Devices without requests do it before.
 */
void dbd_requests_finish(struct block_device *bdev)
{
	struct request_queue *q = bdev_get_queue(bdev);
	unsigned int flags;

	if (!queue_is_mq(q))
		return;
	flags = blk_mq_freeze_queue(q);
	blk_mq_unfreeze_queue(q, flags);
}

/*
 * Writes under way to a device. The CPUs are read one after the other, and a write may begin on one and
 * end on another: never too small a number while no write begins.
 */
static long dbd_writes_under_way(struct block_device *bdev)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += part_stat_local_read_cpu(bdev, in_flight[1], cpu);
	return sum;
}

/*
 * Bio-based devices have no queue that could be drained: waits until no write is under way, to the
 * device or, past its partition, to the disk, for at most @ms milliseconds. The disk's count includes that of its
 * partitions (bdev_inc_in_flight(); not so in old kernels), so the caller keeps new ones away from all of it. RCU
 * first: what passed the probe before that began is on its way then. False: there still are some.
 */
bool dbd_writes_settle(struct block_device *bdev, unsigned int ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(ms) + 1;

	synchronize_rcu_expedited();
	for (;;) {
		if (!dbd_writes_under_way(bdev) &&
		    (!bdev_is_partition(bdev) || !dbd_writes_under_way(bdev_whole(bdev))))
			return true;
		if (time_after(jiffies, end))
			return false;
		schedule_timeout_uninterruptible(1);
	}
}

void dbd_bio_inc_remaining(struct bio *bio)
{
	bio_inc_remaining(bio);
}

/* Copies @len bytes of what @bio writes to @to, from @skip bytes behind its current position on. */
void dbd_bio_read(struct bio *bio, unsigned int skip, unsigned int len, u8 *to)
{
	struct bvec_iter iter = bio->bi_iter;
	struct bio_vec bv;

	if (skip)
		bio_advance_iter(bio, &iter, skip);
	iter.bi_size = min(iter.bi_size, len);
	__bio_for_each_segment(bv, bio, iter, iter) {
		memcpy_from_bvec(to, &bv);
		to += bv.bv_len;
	}
}

void dbd_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

/* Copies @len bytes at @from (zeros when NULL) into @bio, @skip bytes behind its current position. */
void dbd_bio_give(struct bio *bio, unsigned int skip, unsigned int len, const u8 *from)
{
	struct bvec_iter iter = bio->bi_iter;
	struct bio_vec bv;

	if (skip)
		bio_advance_iter(bio, &iter, skip);
	iter.bi_size = min(iter.bi_size, len);
	__bio_for_each_segment(bv, bio, iter, iter) {
		if (from) {
			memcpy_to_bvec(&bv, from);
			from += bv.bv_len;
		} else {
			memzero_bvec(&bv);
		}
	}
}

/* The same with @src, which was not allocated from high memory, so its pages are mapped in a row. */
void dbd_bio_fill(struct bio *bio, unsigned int skip, unsigned int len,
		  struct page *src, unsigned int src_offset)
{
	dbd_bio_give(bio, skip, len, src ? page_address(src) + src_offset : NULL);
}

/* @work is that of a delayed_work. */
void dbd_flush_delayed(struct work_struct *work)
{
	flush_delayed_work(to_delayed_work(work));
}

/*
 * Nobody is charged for @bio, nor does a limit of the task that happens to submit it hold it up: others
 * wait for it too.
 */
void dbd_bio_charge_nobody(struct bio *bio)
{
#ifdef CONFIG_BLK_CGROUP
	bio_associate_blkg_from_css(bio, NULL);
#endif
}

/* One page of kernel memory, all of it. */
void dbd_bio_add_memory(struct bio *bio, u8 *page)
{
	__bio_add_page(bio, virt_to_page(page), PAGE_SIZE, 0);
}

/*
 * No reclaim and no reserves: the caller has a reserve of its own, and may itself be the one that
 * reclaim waits for. Nor is anybody woken for the sake of more than a page.
 */
struct page *dbd_alloc_pages(unsigned int order)
{
	gfp_t gfp = __GFP_NORETRY | __GFP_NOWARN | __GFP_NOMEMALLOC;

	return alloc_pages(order ? gfp | __GFP_COMP : gfp | GFP_NOWAIT, order);
}

/*
 * The control side, while no write waits for it: the page cache may have taken all memory, but gives it back
 * to whoever waits. Nobody is killed for it.
 */
#define DBD_GFP_CONTROL (GFP_KERNEL | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

/* A page of that reserve. */
struct page *dbd_alloc_reserve_page(void)
{
	return alloc_page(DBD_GFP_CONTROL);
}

unsigned int dbd_page_order(struct page *page)
{
	return compound_order(page);
}

void dbd_get_page(struct page *page)
{
	get_page(page);
}

void dbd_put_page(struct page *page)
{
	put_page(page);
}

bool dbd_page_is_sole(struct page *page)
{
	return page_count(page) == 1;
}

u64 dbd_memory(void)
{
	return (u64)totalram_pages() << PAGE_SHIFT;
}

void dbd_zero_rest_of_page(struct page *page, unsigned int offset)
{
	memzero_page(page + offset / PAGE_SIZE, offset % PAGE_SIZE, PAGE_SIZE - offset % PAGE_SIZE);
}

void dbd_gate_wait(atomic64_t *count)
{
	wait_var_event(count, atomic64_read_acquire(count) == 0);
}

void dbd_gate_wake(atomic64_t *count)
{
	wake_up_var(count);
}

/* A page of a map, zeroed. */
void *dbd_alloc_leaf(gfp_t gfp)
{
	return (void *)__get_free_page(gfp | __GFP_ZERO);
}

/* From a probe, which kswapd may run too, so no reserves. */
const gfp_t dbd_gfp_leaf_atomic = GFP_NOWAIT | __GFP_NOWARN | __GFP_NOMEMALLOC;
/*
 * From a worker that writeback waits for, so no I/O. It may try as long as others give way (readers fill the
 * page cache as fast as one pass of reclaim empties it), and gives up when nobody does.
 */
const gfp_t dbd_gfp_leaf_sleep = GFP_NOIO | __GFP_RETRY_MAYFAIL | __GFP_NOWARN | __GFP_NOMEMALLOC;
const gfp_t dbd_gfp_leaf_control = DBD_GFP_CONTROL;
const gfp_t dbd_gfp_noio = GFP_NOIO;
const gfp_t dbd_gfp_nowait = GFP_NOWAIT | __GFP_NOMEMALLOC;

/* The calling task is being killed. */
bool dbd_killed(void)
{
	return fatal_signal_pending(current);
}

unsigned int dbd_noio_save(void)
{
	return memalloc_noio_save();
}

void dbd_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}
