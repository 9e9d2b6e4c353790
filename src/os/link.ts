// Interfaces of a namespace by name, one question or change at a time and without a process; os/rtnetlink for more.

import ipaddr from 'ipaddr.js'
import { DetourError } from '../errors.ts'
import { type LinkSettings, Rtnetlink, rtnetlinkIn } from './rtnetlink.ts'

/** What is known of an interface. */
export interface LinkInfo {
  name: string
  index: number
  /** `ether` for Ethernet. */
  type: string
  mac: string
  mtu: number
  /** IPv4 and IPv6 addresses without prefix length, link-local ones included. */
  addresses: string[]
  /** The same with the length of the prefix that is on the link: `10.0.0.1/24`. */
  networks: string[]
}

/** Reads an interface's index, type, MAC, MTU and addresses. Throws DetourError `not-found` when there is no such interface or namespace. */
export function linkInfo(name: string, namespace = ''): LinkInfo {
  const questions = new Rtnetlink(namespace)
  try {
    const link = questions.link(name)
    if (link === undefined)
      throw new DetourError('not-found', `interface ${name} does not exist in namespace ${namespace || '(current)'}`)
    const { index, type, mac, mtu } = link
    const found = questions.networks(index)
    const addresses = found.map(({ address }) => ipaddr.fromByteArray([...address]).toString())
    const networks = found.map(({ bits }, i) => `${addresses[i]}/${bits}`)
    return { name, index, type, mac, mtu, addresses, networks }
  } finally {
    questions.close()
  }
}

/** Changes an interface. Throws DetourError. */
export function setLink(name: string, namespace: string, settings: LinkSettings): void {
  const changes = new Rtnetlink(namespace)
  try {
    changes.setLink(name, settings)
  } finally {
    changes.close()
  }
}

/** Removes an interface; one that is not there, or whose namespace is not there, is fine. */
export function deleteLink(name: string, namespace = ''): void {
  const changes = rtnetlinkIn(namespace)
  try {
    changes?.deleteLink(name)
  } finally {
    changes?.close()
  }
}
