// What the kernel knows of a thread, beside its work.

import { setPriority } from 'node:os'
import koffi from 'koffi'

const prctl = koffi.load(null).func('int prctl(int, str, ulong, ulong, ulong)')
const PR_SET_NAME = 15

/** Names the calling thread, as `top -H` and /proc/<pid>/task/*\/comm show it; the kernel keeps 15 bytes. */
export function nameThread(name: string): void {
  prctl(PR_SET_NAME, name, 0, 0, 0)
}

const NICE = -15

/** Has the kernel run the calling thread before others, where this process may ask for it (CAP_SYS_NICE). */
export function preferThread(): void {
  try {
    // Of Linux, 0 is the thread (setpriority(2)).
    setPriority(0, NICE)
  } catch {
    // It takes its turn.
  }
}
