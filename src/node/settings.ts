// The daemon's configuration: the file, and what a node is started with, which has the way out and the node's own addresses
// filled in.

import { isIP } from 'node:net'
import { type Config, configSchema } from '../control/config.ts'
import { readYaml } from '../control/yaml.ts'
import { type Changes, takeOver } from './reload.ts'
import { findWayOut, nodeAddresses } from './uplink.ts'

/** Main thread only. */
export class Settings {
  /** What the node goes by: the same object all the time, changed in place. */
  readonly config: Config
  readonly uplink: string
  readonly namespace: string
  private readonly file: string
  /** As the file has it, without what waits for a restart. */
  private configured: Config
  private readonly local: string
  private addresses: string[]

  /** Reads the file and finds what it leaves out. Throws DetourError. */
  constructor(file: string) {
    this.file = file
    this.configured = readYaml(configSchema, file)
    const { uplink, local } = findWayOut(this.configured)
    this.uplink = uplink
    this.local = local
    this.namespace = this.configured.node.namespace ?? ''
    this.addresses = nodeAddresses(this.namespace)
    this.config = this.completed()
  }

  /** Reads the file again and takes over what can change while packets flow; `undo` takes that back. Throws DetourError, and then nothing has changed. */
  reload(): Changes & { undo(): void } {
    const last = structuredClone(this.configured)
    const changes = takeOver(this.configured, readYaml(configSchema, this.file))
    Object.assign(this.config, this.completed())
    const undo = () => {
      this.configured = last
      Object.assign(this.config, this.completed())
    }
    return { ...changes, undo }
  }

  /** Looks at the node's addresses again; says whether they are others. */
  refresh(): boolean {
    const addresses = nodeAddresses(this.namespace)
    if (addresses.join() === this.addresses.join()) return false
    this.addresses = addresses
    Object.assign(this.config, this.completed())
    return true
  }

  private completed(): Config {
    const { tunnel, pods, bypass } = this.configured
    const from = this.addresses.map(address => `${address}/${isIP(address) === 4 ? 32 : 128}`)
    const own = pods.bypassNode && from.length > 0 ? [{ name: 'node', from }] : []
    return { ...this.configured, tunnel: { ...tunnel, local: this.local }, bypass: [...bypass, ...own] }
  }
}
