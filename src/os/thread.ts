// What the kernel knows of a thread, beside its work.

import koffi from 'koffi'

const prctl = koffi.load(null).func('int prctl(int, str, ulong, ulong, ulong)')
const PR_SET_NAME = 15

/** Names the calling thread, as `top -H` and /proc/<pid>/task/*\/comm show it; the kernel keeps 15 bytes. */
export function nameThread(name: string): void {
  prctl(PR_SET_NAME, name, 0, 0, 0)
}
