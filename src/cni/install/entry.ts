// Detour's own entry in a list of plugins.

/** The name of the executable, which is the `type` that a runtime looks for. */
export const PLUGIN = 'detour-cni'

/** What may be set in the entry; what is not given is the daemon's to decide. */
export interface EntryOptions {
  /** The daemon's control socket. */
  socket?: string
  /** Whether pods that say nothing are inspected. */
  inspect?: 'default' | 'always' | 'never'
  /** Pods of these namespaces are never inspected. */
  excludeNamespaces?: string[]
  /** What happens to a pod's packets when the daemon or the endpoint is gone. */
  failMode?: 'open' | 'closed'
}

/** A plugin's configuration. */
export type Entry = { type: string } & Record<string, unknown>

/** The entry with the given options, keys in this order; the capability makes runtimes pass on pods' annotations. */
export function entryOf({ socket, inspect, excludeNamespaces, failMode }: EntryOptions): Entry {
  return {
    type: PLUGIN,
    capabilities: { 'io.kubernetes.cri.pod-annotations': true },
    ...(socket === undefined ? {} : { socket }),
    ...(inspect === undefined ? {} : { inspect }),
    ...(excludeNamespaces === undefined ? {} : { excludeNamespaces }),
    ...(failMode === undefined ? {} : { failMode }),
  }
}
