// What the CNI plugin has the node daemon do, over the control socket: plain data. Names as in the CNI specification.

/** Names one attachment: (CNI_CONTAINERID, CNI_IFNAME). */
export interface AttachmentKey {
  containerId: string
  ifname: string
}

/** What the conflist entry wants for pods that do not say otherwise; `default`: as the daemon's configuration has it. */
export const INSPECT_CHOICES = ['default', 'always', 'never'] as const
export type InspectChoice = (typeof INSPECT_CHOICES)[number]

/** A pod interface that the plugins before this one have made. */
export interface AttachRequest extends AttachmentKey {
  /** Path of the pod's network namespace. */
  netns: string
  /** The network configuration's name. */
  network: string
  /** Empty where the runtime does not say, as are name and UID. */
  podNamespace: string
  podName: string
  podUid: string
  /** Those of the pod that Detour gives a meaning. */
  annotations: Record<string, string>
  /** Address/length, as the result of the plugins before has them for this interface. */
  addresses: string[]
  inspect: InspectChoice
  /** In addition to those of the daemon's configuration. */
  excludeNamespaces: string[]
  failMode?: 'open' | 'closed'
}

/** What became of it: `inspected` is false when the pod is left alone, for the reason. */
export interface AttachReply {
  inspected: boolean
  reason: string
  id: string
  mac: string
}

export interface DetachRequest extends AttachmentKey {
  /** Empty where the runtime does not say. */
  netns: string
}

export interface CheckRequest extends AttachmentKey {
  netns: string
  addresses: string[]
}

/** Whether everything of the attachment is where it should be; a pod that is left alone on purpose is `ok`. */
export interface CheckReply {
  ok: boolean
  reason: string
}

export interface ReadyReply {
  /** Whether `attach` would be served now. */
  ready: boolean
  /** Whether pods that are attached already are served badly or not at all. */
  degraded: boolean
  reason: string
}

export interface CollectRequest {
  /** Attachments of other networks are left alone. */
  network: string
  valid: AttachmentKey[]
}

/** Keys of the configuration that have changed: those that count from now on, and those that wait for the next start. */
export interface ReloadReply {
  applied: string[]
  waiting: string[]
}

/**
 * What the node daemon implements. Each takes up to several seconds, and is safe to repeat. A rejection with an
 * OperationFailure goes to the client by its code; any other becomes `internal`.
 */
export interface Operations {
  attach(request: AttachRequest): Promise<AttachReply>
  detach(request: DetachRequest): Promise<{ found: boolean }>
  check(request: CheckRequest): Promise<CheckReply>
  ready(): Promise<ReadyReply>
  /** Detaches what is not in the list; resolves to the ids of it. */
  collect(request: CollectRequest): Promise<{ removed: string[] }>
  /** Reads the configuration again; of one with faults nothing is taken over. */
  reload?(): Promise<ReloadReply>
}

/** Why an operation was refused: `busy` may succeed in a moment, `unavailable` when tried again later, `bad-request` never will. */
export class OperationFailure extends Error {
  readonly code: 'busy' | 'unavailable' | 'bad-request'

  constructor(code: OperationFailure['code'], message: string) {
    super(message)
    this.name = 'OperationFailure'
    this.code = code
  }
}
