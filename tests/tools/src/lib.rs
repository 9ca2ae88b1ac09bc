//! Shared code of the VM test programs.
