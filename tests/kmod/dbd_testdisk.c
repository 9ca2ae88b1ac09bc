// SPDX-License-Identifier: GPL-2.0-only
/*
 * Disks in memory for the tests, which take what QEMU's disks do not: secure erase, and errors and delays
 * on demand. Bio-based, as device mapper and md are. Only for virtual machines; never installed.
 *
 * README.md says how it is used. Pages live from the first write to them until the module goes, so that a
 * reader never meets one that is being freed: erased content is overwritten in place.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#define MAX_DISKS	4
#define MAX_RULES	16
#define LOCKS		64
/* What is read after a discard is undefined: nobody may rely on zeroes. */
#define DISCARDED	0xdd

static unsigned int disks = 1;
module_param(disks, uint, 0444);
MODULE_PARM_DESC(disks, "Number of disks");
static unsigned int size_mib = 128;
module_param(size_mib, uint, 0444);
MODULE_PARM_DESC(size_mib, "Size of each disk in MiB; memory is taken for what is written");
static unsigned int logical_block = 512;
module_param_named(block_size, logical_block, uint, 0444);
MODULE_PARM_DESC(block_size, "Logical block size in bytes");
static bool discard = true;
module_param(discard, bool, 0444);
MODULE_PARM_DESC(discard, "Discards are taken; what they hit reads as 0xdd");
static unsigned int secure_erase_kib = 1024;
module_param(secure_erase_kib, uint, 0444);
MODULE_PARM_DESC(secure_erase_kib, "Most KiB that one secure erase may have; 0: not taken");
static bool write_zeroes = true;
module_param(write_zeroes, bool, 0444);
MODULE_PARM_DESC(write_zeroes, "Write-zeroes are taken");
static bool write_cache = true;
module_param(write_cache, bool, 0444);
MODULE_PARM_DESC(write_cache, "Announce a volatile cache, so that flushes arrive (they are counted)");
static unsigned int atomic_kib;
module_param(atomic_kib, uint, 0444);
MODULE_PARM_DESC(atomic_kib, "Largest atomic write in KiB, a power of two; 0: none");
static bool account = true;
module_param(account, bool, 0444);
MODULE_PARM_DESC(account, "Count requests under way, as most drivers do (brd does not)");

struct testdisk {
	struct gendisk *disk;
	unsigned int number;
	struct xarray pages;
	/* Each guards the content of the pages whose number ends like its own. */
	spinlock_t locks[LOCKS];
};

enum { READS, WRITES, DISCARDS, ERASES, ZEROES, OTHERS, OPS, FLUSHES = OPS, FUAS, ATOMICS, ERRORS, DELAYS, COUNTERS };
static const char *const names[COUNTERS] = {
	"read", "write", "discard", "secure_erase", "write_zeroes", "other",
	"flush", "fua", "atomic", "error", "delay",
};
static atomic64_t counters[COUNTERS];

/* What happens to a request that touches a range of sectors. Free when @left is 0. */
struct rule {
	unsigned int disk;
	unsigned long ops;
	u64 from, to;
	bool fails;
	/* -1: not delayed. 0: done by a worker, at once. */
	int delay_ms;
	/* How many times more; negative: always. */
	long left;
};
static struct rule rules[MAX_RULES];
static DEFINE_SPINLOCK(rules_lock);

static struct testdisk *all[MAX_DISKS];
static struct workqueue_struct *queue;

struct delayed {
	struct delayed_work work;
	struct bio *bio;
	/* When it was submitted, for the statistics. */
	unsigned long start;
	bool fails;
};

static unsigned int op_of(struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_READ: return READS;
	case REQ_OP_WRITE: return WRITES;
	case REQ_OP_DISCARD: return DISCARDS;
	case REQ_OP_SECURE_ERASE: return ERASES;
	case REQ_OP_WRITE_ZEROES: return ZEROES;
	default: return OTHERS;
	}
}

static spinlock_t *lock_of(struct testdisk *t, pgoff_t index)
{
	return &t->locks[index % LOCKS];
}

/* The page, or NULL when nothing was written to it; made when @make. */
static struct page *page_at(struct testdisk *t, pgoff_t index, bool make)
{
	struct page *page = xa_load(&t->pages, index), *other;

	if (page || !make)
		return page;
	page = alloc_page(GFP_NOIO | __GFP_ZERO);
	if (!page)
		return NULL;
	other = xa_cmpxchg(&t->pages, index, NULL, page, GFP_NOIO);
	if (!other)
		return page;
	__free_page(page);
	return xa_is_err(other) ? NULL : other;
}

static bool copy_segment(struct testdisk *t, u64 at, struct bio_vec *bv, bool write)
{
	char *data = bvec_kmap_local(bv);
	unsigned int done = 0;
	bool good = true;

	while (done < bv->bv_len && good) {
		pgoff_t index = (at + done) >> PAGE_SHIFT;
		unsigned int offset = offset_in_page(at + done);
		unsigned int n = min_t(unsigned int, bv->bv_len - done, PAGE_SIZE - offset);
		struct page *page;

		/* The mapping must not be held across an allocation. */
		if (write) {
			kunmap_local(data);
			page = page_at(t, index, true);
			data = bvec_kmap_local(bv);
			good = page;
		} else {
			page = page_at(t, index, false);
		}
		if (page) {
			spin_lock(lock_of(t, index));
			if (write)
				memcpy_to_page(page, offset, data + done, n);
			else
				memcpy_from_page(data + done, page, offset, n);
			spin_unlock(lock_of(t, index));
		} else if (!write) {
			memset(data + done, 0, n);
		}
		done += n;
	}
	kunmap_local(data);
	return good;
}

/* Sets a range to one byte. Pages that were never written hold zeroes already. */
static bool fill(struct testdisk *t, u64 at, u64 len, u8 byte)
{
	while (len) {
		pgoff_t index = at >> PAGE_SHIFT;
		unsigned int offset = offset_in_page(at);
		unsigned int n = min_t(u64, len, PAGE_SIZE - offset);
		struct page *page = page_at(t, index, byte);

		if (!page && byte)
			return false;
		if (page) {
			void *data = kmap_local_page(page);

			spin_lock(lock_of(t, index));
			memset(data + offset, byte, n);
			spin_unlock(lock_of(t, index));
			kunmap_local(data);
		}
		at += n;
		len -= n;
		cond_resched();
	}
	return true;
}

static bool carry_out(struct testdisk *t, struct bio *bio)
{
	u64 at = bio->bi_iter.bi_sector << SECTOR_SHIFT;
	struct bvec_iter iter;
	struct bio_vec bv;

	switch (bio_op(bio)) {
	case REQ_OP_READ:
	case REQ_OP_WRITE:
		bio_for_each_segment(bv, bio, iter) {
			if (!copy_segment(t, at, &bv, op_is_write(bio_op(bio))))
				return false;
			at += bv.bv_len;
		}
		return true;
	case REQ_OP_DISCARD:
		return fill(t, at, bio->bi_iter.bi_size, DISCARDED);
	case REQ_OP_SECURE_ERASE:
	case REQ_OP_WRITE_ZEROES:
		return fill(t, at, bio->bi_iter.bi_size, 0);
	default:
		return false;
	}
}

static void finish(struct testdisk *t, struct bio *bio, unsigned long start, bool fails)
{
	if (fails)
		atomic64_inc(&counters[ERRORS]);
	if (fails || !carry_out(t, bio))
		bio->bi_status = BLK_STS_IOERR;
	if (account)
		bio_end_io_acct(bio, start);
	bio_endio(bio);
}

static void finish_later(struct work_struct *work)
{
	struct delayed *d = container_of(to_delayed_work(work), struct delayed, work);

	finish(d->bio->bi_bdev->bd_disk->private_data, d->bio, d->start, d->fails);
	kfree(d);
}

/* The first rule that fits; the delay is -1 when there is none. */
static void look_up(struct testdisk *t, struct bio *bio, bool *fails, int *delay_ms)
{
	u64 from = bio->bi_iter.bi_sector, to = bio_end_sector(bio);
	unsigned int i;

	*fails = false;
	*delay_ms = -1;
	spin_lock(&rules_lock);
	for (i = 0; i < MAX_RULES; i++) {
		struct rule *r = &rules[i];

		if (!r->left || r->disk != t->number || !(r->ops & BIT(op_of(bio))) || to <= r->from || from >= r->to)
			continue;
		if (r->left > 0)
			r->left--;
		*fails = r->fails;
		*delay_ms = r->delay_ms;
		break;
	}
	spin_unlock(&rules_lock);
}

static void testdisk_submit(struct bio *bio)
{
	struct testdisk *t = bio->bi_bdev->bd_disk->private_data;
	struct delayed *d;
	unsigned long start;
	bool fails;
	int delay_ms;

	/* As every bio-based driver does: a bio that is larger than the limits allow becomes several. */
	bio = bio_split_to_limits(bio);
	if (!bio)
		return;
	if (bio->bi_opf & REQ_PREFLUSH)
		atomic64_inc(&counters[FLUSHES]);
	if (!bio_sectors(bio)) {
		bio_endio(bio);
		return;
	}
	atomic64_inc(&counters[op_of(bio)]);
	if (bio->bi_opf & REQ_FUA)
		atomic64_inc(&counters[FUAS]);
	if (bio->bi_opf & REQ_ATOMIC)
		atomic64_inc(&counters[ATOMICS]);
	look_up(t, bio, &fails, &delay_ms);
	start = account ? bio_start_io_acct(bio) : 0;
	if (delay_ms < 0) {
		finish(t, bio, start, fails);
		return;
	}
	d = kmalloc(sizeof(*d), GFP_NOIO);
	if (!d) {
		finish(t, bio, start, true);
		return;
	}
	atomic64_inc(&counters[DELAYS]);
	d->bio = bio;
	d->start = start;
	d->fails = fails;
	INIT_DELAYED_WORK(&d->work, finish_later);
	queue_delayed_work(queue, &d->work, msecs_to_jiffies(delay_ms));
}

static const struct block_device_operations testdisk_ops = {
	.owner = THIS_MODULE,
	.submit_bio = testdisk_submit,
};

/* "clear", or "DISK OP[,OP...] FIRST-SECTOR SECTORS [error] [delay=MS] [count=N]". */
static int rule_set(const char *text, const struct kernel_param *kp)
{
	struct rule new = { .delay_ms = -1, .left = -1 };
	char *copy, *rest, *word, *op;
	unsigned int field = 0, i;
	int err = 0;

	if (sysfs_streq(text, "clear")) {
		spin_lock(&rules_lock);
		memset(rules, 0, sizeof(rules));
		spin_unlock(&rules_lock);
		return 0;
	}
	copy = kstrdup(text, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	rest = strim(copy);
	while (!err && (word = strsep(&rest, " "))) {
		if (!*word)
			continue;
		switch (field++) {
		case 0:
			err = kstrtouint(word, 0, &new.disk);
			break;
		case 1:
			while (!err && (op = strsep(&word, ","))) {
				int n = match_string(names, OPS, op);

				if (n < 0)
					err = -EINVAL;
				else
					new.ops |= BIT(n);
			}
			break;
		case 2:
			err = kstrtou64(word, 0, &new.from);
			break;
		case 3:
			err = kstrtou64(word, 0, &new.to);
			if (check_add_overflow(new.from, new.to, &new.to))
				new.to = U64_MAX;
			break;
		default:
			if (!strcmp(word, "error"))
				new.fails = true;
			else if (!strncmp(word, "delay=", 6))
				err = kstrtoint(word + 6, 0, &new.delay_ms);
			else if (!strncmp(word, "count=", 6))
				err = kstrtol(word + 6, 0, &new.left);
			else
				err = -EINVAL;
		}
	}
	kfree(copy);
	if (err || field < 4)
		return err ?: -EINVAL;
	spin_lock(&rules_lock);
	for (i = 0; i < MAX_RULES && rules[i].left; i++)
		;
	if (i < MAX_RULES)
		rules[i] = new;
	spin_unlock(&rules_lock);
	return i < MAX_RULES ? 0 : -ENOSPC;
}

static const struct kernel_param_ops rule_ops = { .set = rule_set };
module_param_cb(rule, &rule_ops, NULL, 0200);
MODULE_PARM_DESC(rule, "clear, or: DISK OP[,OP...] FIRST-SECTOR SECTORS [error] [delay=MS] [count=N]");

static int counts_get(char *buffer, const struct kernel_param *kp)
{
	int i, len = 0;

	for (i = 0; i < COUNTERS; i++)
		len += sysfs_emit_at(buffer, len, "%s=%lld\n", names[i], (long long)atomic64_read(&counters[i]));
	return len;
}

static const struct kernel_param_ops counts_ops = { .get = counts_get };
module_param_cb(counts, &counts_ops, NULL, 0444);
MODULE_PARM_DESC(counts, "Requests that came, by kind");

static void testdisk_remove(struct testdisk *t)
{
	struct page *page;
	unsigned long index;

	del_gendisk(t->disk);
	put_disk(t->disk);
	xa_for_each(&t->pages, index, page) {
		__free_page(page);
		cond_resched();
	}
	xa_destroy(&t->pages);
	kfree(t);
}

static struct testdisk *testdisk_add(unsigned int number)
{
	struct queue_limits lim = {
		.logical_block_size = logical_block,
		.physical_block_size = max(logical_block, 4096u),
		.max_hw_sectors = 2048,
		.max_secure_erase_sectors = secure_erase_kib * 2,
		.max_hw_discard_sectors = discard ? UINT_MAX >> SECTOR_SHIFT : 0,
		.discard_granularity = logical_block,
		.max_write_zeroes_sectors = write_zeroes ? UINT_MAX >> SECTOR_SHIFT : 0,
		.features = write_cache ? BLK_FEAT_WRITE_CACHE | BLK_FEAT_FUA : 0,
	};
	struct testdisk *t;
	int err, i;

	if (atomic_kib) {
		lim.features |= BLK_FEAT_ATOMIC_WRITES;
		lim.atomic_write_hw_max = atomic_kib << 10;
		lim.atomic_write_hw_unit_max = atomic_kib << 10;
		lim.atomic_write_hw_unit_min = logical_block;
	}
	t = kzalloc(sizeof(*t), GFP_KERNEL);
	if (!t)
		return ERR_PTR(-ENOMEM);
	t->number = number;
	xa_init(&t->pages);
	for (i = 0; i < LOCKS; i++)
		spin_lock_init(&t->locks[i]);
	t->disk = blk_alloc_disk(&lim, NUMA_NO_NODE);
	if (IS_ERR(t->disk)) {
		err = PTR_ERR(t->disk);
		kfree(t);
		return ERR_PTR(err);
	}
	t->disk->fops = &testdisk_ops;
	t->disk->private_data = t;
	snprintf(t->disk->disk_name, DISK_NAME_LEN, "testdisk%u", number);
	set_capacity(t->disk, (sector_t)size_mib << (20 - SECTOR_SHIFT));
	err = add_disk(t->disk);
	if (err) {
		put_disk(t->disk);
		kfree(t);
		return ERR_PTR(err);
	}
	return t;
}

static void testdisk_exit(void)
{
	int i;

	for (i = MAX_DISKS - 1; i >= 0; i--) {
		if (all[i])
			testdisk_remove(all[i]);
	}
	destroy_workqueue(queue);
}

static int __init testdisk_init(void)
{
	unsigned int i;

	if (!disks || disks > MAX_DISKS || !size_mib)
		return -EINVAL;
	queue = alloc_workqueue("testdisk", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!queue)
		return -ENOMEM;
	for (i = 0; i < disks; i++) {
		struct testdisk *t = testdisk_add(i);

		if (IS_ERR(t)) {
			testdisk_exit();
			return PTR_ERR(t);
		}
		all[i] = t;
	}
	return 0;
}
module_init(testdisk_init);

static void __exit testdisk_module_exit(void)
{
	testdisk_exit();
}
module_exit(testdisk_module_exit);

MODULE_DESCRIPTION("Disks in memory for the tests of dattobd");
MODULE_AUTHOR("The dattobd authors");
MODULE_LICENSE("GPL");
