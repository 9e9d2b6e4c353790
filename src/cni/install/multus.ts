// Detour as a network that Multus attaches to pods by name, where the primary's configuration cannot be chained to (OpenShift):
// an unchained configuration in Multus' own directory, and the object by which pods ask for it.

import { DetourError } from '../../errors.ts'
import type { Directory, Found } from './directory.ts'
import { type Entry, PLUGIN } from './entry.ts'
import type { Change } from './plan.ts'

/** The directory where Multus looks up networks by name. */
export const MULTUS_CONF_DIR = '/etc/cni/multus/net.d'
/** The network's name, and that of the NetworkAttachmentDefinition. */
export const NETWORK = 'detour'
const FILE = 'detour.conf'
const CNI_VERSION = '0.4.0'

/** The unchained configuration: no plugin has run before, the pod's own interface is there already. */
export function unchained(entry: Entry): string {
  const { type, capabilities, ...options } = entry
  return `${JSON.stringify({ cniVersion: CNI_VERSION, name: NETWORK, type, unchained: true, capabilities, ...options }, null, 2)}\n`
}

/** What it takes to have this configuration in the directory; without an entry, to have none. */
export function planMultus(directory: Directory, entry: Entry | undefined): Change[] {
  const present = directory.files.find(({ fileName }) => fileName === FILE)
  const text = entry === undefined ? null : unchained(entry)
  if ((present?.text ?? null) === text) return []
  const path = present?.path ?? `${directory.path}/${FILE}`
  if (present !== undefined && !isOurs(present.conf)) {
    if (entry === undefined) return []
    throw new DetourError('bad-file', `${path}: is not Detour's; name another directory with --conf-dir`)
  }
  return [{ fileName: FILE, path, text, like: present, from: present?.text ?? null }]
}

/** The manifest of the object: with no configuration of its own it stands for the file of the same name on each node. */
export function manifest(namespace: string): string {
  return `apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: ${NETWORK}
  namespace: ${namespace}
`
}

function isOurs(conf: Found['conf']): boolean {
  return 'types' in conf && conf.types.includes(PLUGIN)
}
