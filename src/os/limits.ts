// A limit that configuration and the kernel's programs agree on, apart from what needs native code.

/** The most workers that a node or a gateway can have. */
export const MAX_WORKERS = 16
