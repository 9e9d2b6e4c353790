// Which pods are inspected, and the words that say why.

import { createHash } from 'node:crypto'
import type { Config, FailMode } from '../control/config.ts'
import { FAIL_MODES } from '../control/config.ts'
import { type AttachmentKey, type AttachRequest, OperationFailure } from '../control/operations.ts'

/** The annotations of a pod that have a meaning. */
export const ANNOTATION = {
  INSPECT: 'detour.dev/inspect',
  FAIL_MODE: 'detour.dev/fail-mode',
  /** The vendor's spelling of `detour.dev/inspect: "true"`, with this value. */
  ALIAS: 'paloaltonetworks.com/firewall',
  ALIAS_VALUE: 'pan-fw',
} as const

/** The id of an attachment, which names its pins and its state file: readable, and different for different keys. */
export function attachmentId({ containerId, ifname }: AttachmentKey): string {
  const readable = `${containerId.slice(0, 12)}-${ifname}`.replaceAll(/[^A-Za-z0-9_-]/g, '_')
  return `${readable}-${createHash('sha256').update(`${containerId} ${ifname}`).digest('hex').slice(0, 8)}`
}

/** What people know a pod by: `namespace/name`, or its container where the runtime does not say. */
export function podLabel({ podNamespace, podName, containerId }: AttachRequest): string {
  if (podName === '') return `container ${containerId.slice(0, 12)}`
  return podNamespace === '' ? podName : `${podNamespace}/${podName}`
}

/** What was decided for a pod. */
export interface Admission {
  inspect: boolean
  reason: string
  /** The pod's own, else the network's; undefined for the node's. */
  failMode: FailMode | undefined
}

/** The pod that the daemon itself runs in. */
export interface OwnPod {
  namespace: string
  name: string
}

/** Decides for a pod; throws OperationFailure when an annotation of it says what cannot be understood. */
export function admit(request: AttachRequest, pods: Config['pods'], own?: OwnPod): Admission {
  const { podNamespace, podName } = request
  const failMode = annotation(request, ANNOTATION.FAIL_MODE, FAIL_MODES) ?? request.failMode
  const decide = (inspect: boolean, reason: string): Admission => ({ inspect, reason, failMode })

  if (own !== undefined && own.name === podName && own.namespace === podNamespace)
    return decide(false, 'Detour’s own pod is not inspected')
  if (pods.excludeNamespaces.includes(podNamespace))
    return decide(false, `namespace ${podNamespace} is excluded by the node's configuration`)
  if (request.excludeNamespaces.includes(podNamespace))
    return decide(false, `namespace ${podNamespace} is excluded by network ${request.network}`)
  const asked = annotation(request, ANNOTATION.INSPECT, ['true', 'false'])
  if (asked !== undefined) return decide(asked === 'true', `annotation ${ANNOTATION.INSPECT} is "${asked}"`)
  if (annotationOf(request, ANNOTATION.ALIAS) === ANNOTATION.ALIAS_VALUE)
    return decide(true, `annotation ${ANNOTATION.ALIAS} is "${ANNOTATION.ALIAS_VALUE}"`)
  if (request.inspect === 'always') return decide(true, `network ${request.network} inspects all pods`)
  if (request.inspect === 'never')
    return decide(false, `network ${request.network} inspects only pods with annotation ${ANNOTATION.INSPECT} "true"`)
  if (pods.inspect) return decide(true, "the node's configuration inspects all pods")
  return decide(false, `the node's configuration inspects only pods with annotation ${ANNOTATION.INSPECT} "true"`)
}

function annotation<Word extends string>(request: AttachRequest, name: string, words: readonly Word[]) {
  const value = annotationOf(request, name)
  if (value === undefined || words.includes(value as Word)) return value as Word | undefined
  const printed = JSON.stringify(value.slice(0, 64))
  const allowed = words.map(word => `"${word}"`).join(', ')
  throw new OperationFailure(
    'bad-request',
    `pod ${podLabel(request)}: annotation ${name}: ${printed} is not allowed; allowed: ${allowed}`,
  )
}

function annotationOf({ annotations }: AttachRequest, name: string): string | undefined {
  return Object.hasOwn(annotations, name) ? annotations[name] : undefined
}
