// Takes away what a daemon left behind: for an uninstallation, when no daemon runs any more.

import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { connectControl } from '../control/client.ts'
import { configSchema } from '../control/config.ts'
import { readYaml } from '../control/yaml.ts'
import { DetourError } from '../errors.ts'
import { unpin } from '../os/bpf.ts'
import { namespaceId } from '../os/netns.ts'
import { cleanup, PIN_DIRECTORY } from './attachment.ts'
import { orphans, removePins } from './leftovers.ts'
import { Settings } from './settings.ts'
import { Store } from './store.ts'

/** Leaves every pod as it was before; returns a line for each. Goes on past errors. Throws DetourError when a daemon runs. */
export async function cleanNode(file: string): Promise<string[]> {
  const { node } = existsSync(file) ? readYaml(configSchema, file) : configSchema.parse({})
  await refuseLive(node.control)
  const store = new Store(node.state)
  const { records, stale } = store.load()
  const lines = records.map(({ id, label, netns, sandbox, ifname, inspected }) => {
    try {
      if (inspected) cleanup({ id, namespace: netns, sandbox, interface: ifname })
      store.remove(id)
      return `${label}: ${ifname} is as it was`
    } catch (error) {
      return `${label}: ${(error as Error).message}`
    }
  })
  for (const id of [...stale.map(({ id }) => id), ...orphans(() => false)]) {
    removePins(id)
    lines.push(`attachment ${id}: pins removed`)
  }
  for (const directory of nodePins(file)) {
    unpin(directory)
    lines.push(`${directory}: removed`)
  }
  for (const name of ['attachments', 'handover.sock']) rmSync(join(node.state, name), { recursive: true, force: true })
  return lines
}

/** Pins of the node itself, which bear the names of uplink, port and namespace; none where the uplink is not known any more. */
function nodePins(file: string): string[] {
  try {
    const { uplink, namespace, config } = new Settings(file)
    const ending = `_${uplink.replaceAll('.', ':')}_${config.tunnel.port}_${namespaceId(namespace)}`
    return readdirSync(PIN_DIRECTORY)
      .filter(name => name.endsWith(ending))
      .map(name => join(PIN_DIRECTORY, name))
  } catch {
    return []
  }
}

async function refuseLive(control: string): Promise<void> {
  try {
    const client = await connectControl(control, 2000)
    const { pid } = await client.ask('info', {})
    client.close()
    throw new DetourError('usage', `a daemon runs, process ${pid}: stop it first`)
  } catch (error) {
    if (!(error instanceof DetourError) || error.code !== 'not-found') throw error
  }
}
