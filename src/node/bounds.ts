// What requests of the CNI plugin may say: a control socket's client is root, but may be wrong.

import { isIP } from 'node:net'
import { FAIL_MODES } from '../control/config.ts'
import { type AttachmentKey, type AttachRequest, INSPECT_CHOICES, OperationFailure } from '../control/operations.ts'

/** The specification's characters, and a length that no runtime comes near (CNI specification 1.1.0, section 2). */
const CONTAINER_ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,255}$/
/** IFNAMSIZ; dev_valid_name() of net/core/dev.c. */
const INTERFACE = /^[^\s/:\0]{1,15}$/
const PATH = /^\/[^\0]{1,1023}$/
const NAME_LIMIT = 253
const LIST_LIMIT = 1024

/** Throws OperationFailure `bad-request` that names what is wrong. */
export function checkKey({ containerId, ifname }: AttachmentKey): void {
  expect(CONTAINER_ID.test(containerId), 'containerId', containerId, 'up to 256 letters, digits, "_", "." and "-"')
  const valid = INTERFACE.test(ifname) && ifname !== '.' && ifname !== '..'
  expect(valid, 'ifname', ifname, 'an interface name of up to 15 characters')
}

/** Throws OperationFailure `bad-request` that names what is wrong. */
export function checkAttach(request: AttachRequest): void {
  checkKey(request)
  const { netns, addresses, annotations, excludeNamespaces, inspect, failMode } = request
  expect(PATH.test(netns), 'netns', netns, 'an absolute path')
  for (const key of ['network', 'podNamespace', 'podName', 'podUid'] as const)
    expect(request[key].length <= NAME_LIMIT, key, request[key], `up to ${NAME_LIMIT} characters`)
  for (const [key, list] of Object.entries({ addresses, excludeNamespaces, annotations: Object.keys(annotations) }))
    expect(list.length <= LIST_LIMIT, key, `${list.length} entries`, `up to ${LIST_LIMIT}`)
  checkAddresses(addresses)
  expect(INSPECT_CHOICES.includes(inspect), 'inspect', inspect, INSPECT_CHOICES.join(', '))
  expect(failMode === undefined || FAIL_MODES.includes(failMode), 'failMode', `${failMode}`, FAIL_MODES.join(', '))
}

/** Throws OperationFailure `bad-request` for what is no address, with or without a prefix length. */
export function checkAddresses(addresses: readonly string[]): void {
  for (const address of addresses) expect(isIP(address.split('/')[0]) !== 0, 'addresses', address, 'IP addresses')
}

function expect(valid: boolean, key: string, value: string, allowed: string): void {
  if (valid) return
  const printed = JSON.stringify(value.slice(0, 64))
  throw new OperationFailure('bad-request', `${key}: ${printed} is not allowed; allowed: ${allowed}`)
}
