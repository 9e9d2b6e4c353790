// What must outlive the daemon: a file an attachment, written before the attachment is made and removed after it has been
// taken away, so that whatever was begun is found again. NB: in /run; nothing of it means anything after a reboot.

import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { FAIL_MODES } from '../control/config.ts'
import { prepareDirectory } from '../control/registry.ts'

const recordSchema = z.object({
  /** Of the boot in which it was written. */
  boot: z.string(),
  id: z.string().regex(/^[\w-]{1,64}$/),
  containerId: z.string(),
  ifname: z.string(),
  network: z.string(),
  netns: z.string(),
  /** Which namespace that was. */
  sandbox: z.string(),
  label: z.string(),
  podUid: z.string(),
  addresses: z.array(z.string()),
  failMode: z.enum(FAIL_MODES).optional(),
  /** False for a pod that is left alone on purpose. */
  inspected: z.boolean(),
  /** Why, in words. */
  reason: z.string(),
})

/** An attachment as it is kept. */
export type AttachmentRecord = z.output<typeof recordSchema>

/** A file that is no record of this boot. */
export interface Stale {
  id: string
  why: string
}

const SUFFIX = '.json'
/** The file of a record, and of one that is not whole yet. */
const FILE = /^([\w-]{1,64})\.json(|\.new)$/

/** The folder of the records: one process, one thread. */
export class Store {
  private readonly directory: string
  private readonly boot: string

  /** Makes the folder where it is missing. Throws DetourError when it is not this user's alone. */
  constructor(directory: string, boot = bootId()) {
    prepareDirectory(directory, 'node.state')
    this.directory = join(directory, 'attachments')
    mkdirSync(this.directory, { recursive: true, mode: 0o700 })
    this.boot = boot
  }

  /** Reads all of them; what cannot be used is removed, and told where it is all that there is of an attachment. */
  load(): { records: AttachmentRecord[]; stale: Stale[] } {
    const records: AttachmentRecord[] = []
    const stale: Stale[] = []
    for (const name of readdirSync(this.directory).sort()) {
      const [, id, rest] = FILE.exec(name) ?? []
      // Nothing that this class has made.
      if (id === undefined) continue
      const why = rest === '' ? this.read(name, id, records) : 'was being written'
      if (why === undefined) continue
      if (!records.some(record => record.id === id)) stale.push({ id, why })
      rmSync(join(this.directory, name), { recursive: true, force: true })
    }
    return { records, stale }
  }

  private read(name: string, id: string, records: AttachmentRecord[]): string | undefined {
    try {
      const record = recordSchema.parse(JSON.parse(readFileSync(join(this.directory, name), 'utf8')))
      if (record.id !== id) return `says that it is ${record.id}`
      if (record.boot !== this.boot) return 'is of an earlier boot'
      records.push(record)
      return undefined
    } catch (error) {
      return `cannot be read (${(error as Error).message.split('\n')[0]})`
    }
  }

  /** Writes a record; it is on the disk, whole, when this returns. Throws the error of the file system, and then the record is as it was. */
  save(record: Omit<AttachmentRecord, 'boot'>): void {
    const path = this.path(record.id)
    const temporary = `${path}.new`
    try {
      const fd = openSync(temporary, 'w', 0o600)
      try {
        const bytes = Buffer.from(`${JSON.stringify({ boot: this.boot, ...record })}\n`)
        for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at)
        fsyncSync(fd)
      } finally {
        closeSync(fd)
      }
      renameSync(temporary, path)
    } catch (error) {
      rmSync(temporary, { force: true })
      throw error
    }
    this.sync()
  }

  /** Removes a record; one that is not there is fine. */
  remove(id: string): void {
    rmSync(this.path(id), { force: true })
    this.sync()
  }

  private path(id: string): string {
    return join(this.directory, `${id}${SUFFIX}`)
  }

  // A name is on the disk when its folder is.
  private sync(): void {
    const fd = openSync(this.directory, 'r')
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  }
}

/** Tells one boot of the machine from all others (random(4)). */
export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}
