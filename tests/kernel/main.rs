//! The kernel suite: runs in a virtual machine, as root, one test at a time (`testbed suite kernel`).

#[cfg(test)]
mod bed;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod volumes;
