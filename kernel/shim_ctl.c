// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the control side cannot say in Rust: module parameters that show in
 * sysfs (the `module!` macro makes them invisible), `struct proc_ops` (not in
 * the kernel's Rust bindings), THIS_MODULE in one way for 7.2 and 7.3.
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/proc_fs.h>
#include <linux/reboot.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/suspend.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>

#include "shim_ctl.h"

/*
 * Parameters. Rust reads them as atomics (kernel/sys/module.rs): the writable
 * ones may change at any time. Bounds are applied by kernel/params.rs.
 */
unsigned long dattobd_cow_max_memory_default = 314572800;
module_param_named(cow_max_memory_default, dattobd_cow_max_memory_default, ulong, 0644);
MODULE_PARM_DESC(cow_max_memory_default,
		 "Limit in bytes of the index of copies in memory, for a device set up without one; beyond it goes to the COW file (default 314572800)");

unsigned int dattobd_cow_fallocate_percentage_default = 10;
module_param_named(cow_fallocate_percentage_default, dattobd_cow_fallocate_percentage_default, uint, 0644);
MODULE_PARM_DESC(cow_fallocate_percentage_default,
		 "Size of a COW file set up without one, in percent of the device (default 10)");

unsigned int dattobd_max_snap_devices = 24;
module_param_named(max_snap_devices, dattobd_max_snap_devices, uint, 0444);
MODULE_PARM_DESC(max_snap_devices, "Number of devices (default 24, at most 255)");

int dattobd_debug;
module_param_named(debug, dattobd_debug, int, 0644);
MODULE_PARM_DESC(debug, "Not 0: log each step of an operation");

int dattobd_may_hook_syscalls = 1;
module_param_named(may_hook_syscalls, dattobd_may_hook_syscalls, int, 0444);
MODULE_PARM_DESC(may_hook_syscalls, "Accepted and ignored (no system call is ever hooked)");

unsigned long dattobd_copy_memory_max;
module_param_named(copy_memory_max, dattobd_copy_memory_max, ulong, 0644);
MODULE_PARM_DESC(copy_memory_max,
		 "Bytes of old data that one device keeps in memory before writers wait (default 33554432, or 1/16 of the memory if that is less, as 0 means too; at least 2097152, at most 4294967296; read when a snapshot is taken)");

unsigned int dattobd_checkpoint_ms = 10000;
module_param_named(checkpoint_ms, dattobd_checkpoint_ms, uint, 0644);
MODULE_PARM_DESC(checkpoint_ms,
		 "Milliseconds after which the mark of a region that is not written to is taken back (default 10000, at least 100): how much a crash adds to the changes");

#ifdef DATTOBD_TEST_FAULTS
/* Deliberate defects for counter-tests; the numbers are those of kernel/faults.rs. */
static const char *const dbd_fault_names[] = {
	"none", "no_cow", "no_recheck", "publish_early", "no_mark", "no_guard",
	"no_region_mark", "no_unseal", "no_reload_check", "no_log",
	"slow_join", "index_wrong",
};

unsigned int dattobd_test_fault;

static int dbd_fault_set(const char *val, const struct kernel_param *kp)
{
	unsigned int number;
	int n = sysfs_match_string(dbd_fault_names, val);

	/* Happens now, once: kernel/sys/defects.rs. */
	if (n < 0 && !kstrtouint(val, 0, &number) && number > 100)
		return dbd_plant_defect(number);
	if (n < 0 && !kstrtouint(val, 0, &number) && number < ARRAY_SIZE(dbd_fault_names))
		n = number;
	if (n < 0)
		return n;
	WRITE_ONCE(dattobd_test_fault, n);
	return 0;
}

static int dbd_fault_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%s\n", dbd_fault_names[READ_ONCE(dattobd_test_fault)]);
}

static const struct kernel_param_ops dbd_fault_ops = {
	.set = dbd_fault_set,
	.get = dbd_fault_get,
};
module_param_cb(test_fault, &dbd_fault_ops, NULL, 0644);
MODULE_PARM_DESC(test_fault, "Test builds only: a deliberate defect to switch on, by name or number");

unsigned int dattobd_test_delay;
module_param_named(test_delay, dattobd_test_delay, uint, 0644);
MODULE_PARM_DESC(test_delay, "Test builds only: microseconds that each step of a first overwrite waits at most");

unsigned int dattobd_test_delay_steps = ~0U;
module_param_named(test_delay_steps, dattobd_test_delay_steps, uint, 0644);
MODULE_PARM_DESC(test_delay_steps, "Test builds only: which steps wait, a sum of the numbers in kernel/delays.rs");
#endif

MODULE_VERSION(DATTOBD_VERSION);

struct module *dbd_this_module(void)
{
	return THIS_MODULE;
}

/* The product's version, which the build takes from Cargo.toml. */
const char *dbd_version(void)
{
	return DATTOBD_VERSION;
}

static int dbd_proc_open(struct inode *inode, struct file *file)
{
	const struct dbd_proc_file *f = pde_data(inode);

	return single_open(file, f->show, f->data);
}

static const struct proc_ops dbd_proc_ops = {
	.proc_open = dbd_proc_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

struct proc_dir_entry *dbd_proc_create(const char *name, umode_t mode,
					   struct dbd_proc_file *f)
{
	return proc_create_data(name, mode, NULL, &dbd_proc_ops, f);
}

void dbd_proc_remove(struct proc_dir_entry *entry)
{
	proc_remove(entry);
}

/*
 * For what may wait for filesystems (growing a COW file, letting go of an unmounted device) and for
 * reports. Memory reclaim never waits for it, so it has no rescuer.
 */
struct workqueue_struct *dbd_alloc_control_queue(void)
{
	return alloc_workqueue("dattobd-control", WQ_UNBOUND, 0);
}

/*
 * The image of a hibernation is taken of memory, change maps included, and then written to a disk
 * that may be tracked: after the resume the maps would not know of those writes. So a device and a
 * hibernation exclude each other: both sides announce themselves first and look at the other then.
 */
static atomic_t dbd_devices;
static atomic_t dbd_hibernating;

static int dbd_pm_event(struct notifier_block *nb, unsigned long event, void *data)
{
	switch (event) {
	case PM_HIBERNATION_PREPARE:
		atomic_set(&dbd_hibernating, 1);
		smp_mb();
		if (!atomic_read(&dbd_devices))
			return NOTIFY_OK;
		atomic_set(&dbd_hibernating, 0);
		pr_err("dattobd: hibernation refused while block devices are tracked (dbdctl destroy them first)\n");
		return notifier_from_errno(-EBUSY);
	case PM_POST_HIBERNATION:
		atomic_set(&dbd_hibernating, 0);
		return NOTIFY_OK;
	default:
		return NOTIFY_DONE;
	}
}

static struct notifier_block dbd_pm_notifier = {
	.notifier_call = dbd_pm_event,
};

int dbd_watch_hibernation(void)
{
	return register_pm_notifier(&dbd_pm_notifier);
}

void dbd_unwatch_hibernation(void)
{
	unregister_pm_notifier(&dbd_pm_notifier);
}

/*
 * The last moment at which a write reaches the disk: filesystems are unmounted or read-only by now.
 * sysrq-b and power cuts come without it.
 */
static void (*dbd_shutdown_call)(void *arg);
static void *dbd_shutdown_arg;

static int dbd_shutdown_event(struct notifier_block *nb, unsigned long event, void *data)
{
	dbd_shutdown_call(dbd_shutdown_arg);
	return NOTIFY_DONE;
}

static struct notifier_block dbd_shutdown_notifier = {
	.notifier_call = dbd_shutdown_event,
};

int dbd_watch_shutdown(void (*call)(void *arg), void *arg)
{
	dbd_shutdown_call = call;
	dbd_shutdown_arg = arg;
	return register_reboot_notifier(&dbd_shutdown_notifier);
}

void dbd_unwatch_shutdown(void)
{
	unregister_reboot_notifier(&dbd_shutdown_notifier);
}

/* Pins the module for a device. -EBUSY: the machine is about to hibernate. */
int dbd_device_begins(void)
{
	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	atomic_inc(&dbd_devices);
	smp_mb__after_atomic();
	if (!atomic_read(&dbd_hibernating))
		return 0;
	dbd_device_ends();
	return -EBUSY;
}

void dbd_device_ends(void)
{
	atomic_dec(&dbd_devices);
	module_put(THIS_MODULE);
}
