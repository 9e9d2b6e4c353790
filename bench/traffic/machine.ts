// Processor time of the whole machine, less what processes use that have nothing to do with the measurement.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { cpus } from 'node:os'

/** Ticks of /proc: USER_HZ is 100 on every architecture that Node runs on (proc_pid_stat(5)). */
const TICK_MS = 10
/** PF_KTHREAD of linux/sched.h. */
const KERNEL_THREAD = 0x0020_0000
const ATTEMPTS = 10

export interface MachineTime {
  /** When it was read, ms of performance.now(). */
  at: number
  /** Time that all processors together idled or were taken away, ms. */
  idle: number
  /** Time of foreign processes, ms: neither kernel threads nor descendants of this process. */
  foreign: number
}

export interface ProcessTime {
  pid: number
  parent: number
  kernel: boolean
  /** Its own time and that of children it has waited for, ms. */
  ms: number
}

export function machineTime(): MachineTime {
  const foreign = foreignTime(processes(), process.pid)
  return { at: performance.now(), idle: parseIdle(readFileSync('/proc/stat', 'utf8')), foreign }
}

/** Processor time that was spent between two readings, ms. */
export function spent(from: MachineTime, to: MachineTime): number {
  return (to.at - from.at) * cpus().length - (to.idle - from.idle) - (to.foreign - from.foreign)
}

/** Processors that foreign processes kept busy between two readings. */
export function others(from: MachineTime, to: MachineTime): number {
  return (to.foreign - from.foreign) / (to.at - from.at)
}

/** Idle, iowait and steal of the first line of /proc/stat, ms: the kernel counts idling exactly, the rest by sampling. */
export function parseIdle(stat: string): number {
  const [, , , , idle, iowait, , , steal] = stat.split('\n', 1)[0].split(/\s+/).map(Number)
  return (idle + iowait + steal) * TICK_MS
}

/** One line of /proc/PID/stat; a program's name may hold anything. */
export function parseProcess(stat: string): ProcessTime {
  const fields = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number)
  const ticks = fields[11] + fields[12] + fields[13] + fields[14]
  const kernel = (fields[6] & KERNEL_THREAD) !== 0
  return { pid: Number.parseInt(stat, 10), parent: fields[1], kernel, ms: ticks * TICK_MS }
}

/** Time of all processes that are neither kernel threads nor `root` nor below it. */
export function foreignTime(list: readonly ProcessTime[], root: number): number {
  const parents = new Map(list.map(({ pid, parent }) => [pid, parent]))
  const isOurs = (pid: number | undefined): boolean =>
    pid === root || (pid !== undefined && pid !== 0 && isOurs(parents.get(pid)))
  return list.reduce((sum, { pid, kernel, ms }) => (kernel || isOurs(pid) ? sum : sum + ms), 0)
}

/**
 * The processes that live now. One that ends while they are read may be missing here and be in its parent's time at the next reading, with all it
 * ever used: then they are read again.
 */
function processes(): ProcessTime[] {
  for (let attempt = 1; ; attempt++) {
    const pids = readdirSync('/proc').filter(name => /^\d+$/.test(name))
    const list = pids.flatMap(pid => {
      const stat = statOf(pid)
      return stat === undefined ? [] : [parseProcess(stat)]
    })
    if (attempt === ATTEMPTS || pids.every(pid => existsSync(`/proc/${pid}`))) return list
  }
}

function statOf(pid: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8')
  } catch {
    return undefined // ended meanwhile
  }
}

/** Processor time of one process with all its threads, ms. */
export function processTime(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
  return parseProcess(fields).ms
}
