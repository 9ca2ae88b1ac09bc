/* SPDX-License-Identifier: GPL-2.0-only */
/* What shim_ctl.c offers to kernel/sys/{module,procfs,queues}.rs. */
#ifndef DATTOBD_SHIM_CTL_H
#define DATTOBD_SHIM_CTL_H

#include <linux/types.h>

struct module;
struct proc_dir_entry;
struct seq_file;
struct workqueue_struct;

/* A /proc file with one `show`; layout shared with kernel/sys/procfs.rs. */
struct dbd_proc_file {
	int (*show)(struct seq_file *m, void *data);
	void *data;
};

struct module *dbd_this_module(void);
const char *dbd_version(void);
int dbd_device_begins(void);
void dbd_device_ends(void);
struct proc_dir_entry *dbd_proc_create(const char *name, umode_t mode,
				       struct dbd_proc_file *f);
void dbd_proc_remove(struct proc_dir_entry *entry);
struct workqueue_struct *dbd_alloc_control_queue(void);
int dbd_watch_hibernation(void);
void dbd_unwatch_hibernation(void);
int dbd_watch_shutdown(void (*call)(void *arg), void *arg);
void dbd_unwatch_shutdown(void);
#ifdef DATTOBD_TEST_FAULTS
int dbd_plant_defect(unsigned int number);
#endif

#endif
