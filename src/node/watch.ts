// A watch over interfaces by name, in any namespaces: what has happened to them since the last look, without a process and
// without entering a namespace. Main thread only.

import { statSync } from 'node:fs'
import { addressOf, POLL, poll } from '../os/libc.ts'
import { namespacePath } from '../os/netns.ts'
import { GROUP, type Link, type Rtnetlink, rtnetlinkIn } from '../os/rtnetlink.ts'

/**
 * What happened to an interface: it went away (with its namespace, or renamed, too), one of its name came (a new one, although it may
 * look like the old); its carrier or its owner took it down or up; MTU, MAC, addresses or classifiers changed.
 */
export type LinkChange = 'gone' | 'back' | 'down' | 'up' | 'mtu' | 'mac' | 'addresses' | 'filters'

/** Hears of each change once, in order, with the interface as it is after it. */
export type LinkListener = (change: LinkChange, link: Link | undefined) => void

/** Looks between two at the names of namespaces, which no event tells of. */
const NAMES_EVERY = 5

const GROUPS = GROUP.LINK | GROUP.ADDRESS | GROUP.FILTER

interface Watched {
  name: string
  link: Link | undefined
  tell: LinkListener
}

interface Place {
  namespace: string
  /** Inode of the namespace; 0 while there is none. */
  id: number
  /** Undefined while there is no namespace. */
  socket: Rtnetlink | undefined
  watched: Set<Watched>
}

export class LinkWatch {
  private readonly places = new Map<string, Place>()
  private pollfds = new Int32Array(0)
  private looks = 0

  /** Watches an interface, which need not be there yet; returns how it is now, and `stop`. Throws DetourError. */
  watch(namespace: string, name: string, tell: LinkListener): { link: Link | undefined; stop: () => void } {
    let place = this.places.get(namespace)
    if (place === undefined) {
      place = { namespace, id: 0, socket: undefined, watched: new Set() }
      this.places.set(namespace, place)
      this.open(place)
    }
    const [link] = ask(place, [name])
    const watched = { name, link, tell }
    place.watched.add(watched)
    return { link, stop: () => this.drop(place, watched) }
  }

  /** Tells the listeners what has happened since the last look. Call it a few times a second; one system call when nothing has. */
  look(): void {
    if (++this.looks % NAMES_EVERY === 0) for (const place of [...this.places.values()]) this.check(place)
    const sockets = [...this.places.values()]
    if (poll(addressOf(this.pollfds), this.pollfds.length / 2, 0) <= 0) return
    const readable = sockets.filter((_, i) => this.pollfds[i * 2 + 1] >>> 16 !== 0)
    for (const place of readable) this.hear(place)
  }

  close(): void {
    for (const { socket } of this.places.values()) socket?.close()
    this.places.clear()
    this.arrange()
  }

  private drop(place: Place, watched: Watched): void {
    place.watched.delete(watched)
    if (place.watched.size > 0 || this.places.get(place.namespace) !== place) return
    // NB: the socket would keep a namespace alive that nobody else wants.
    place.socket?.close()
    this.places.delete(place.namespace)
    this.arrange()
  }

  /** Opens the socket of a namespace, if there is one. */
  private open(place: Place): void {
    const id = inode(place.namespace)
    place.socket = id === 0 ? undefined : rtnetlinkIn(place.namespace, GROUPS)
    place.id = place.socket === undefined ? 0 : id
    this.arrange()
  }

  /** Whether the name still stands for the same namespace. */
  private check(place: Place): void {
    if (inode(place.namespace) === place.id) return
    place.socket?.close()
    place.socket = undefined
    for (const watched of [...place.watched]) become(watched, undefined)
    if (this.places.get(place.namespace) !== place) return
    this.open(place)
    this.compare(place)
  }

  private hear(place: Place): void {
    const events = place.socket?.events()
    if (events === undefined) {
      this.compare(place)
      return
    }
    for (const event of events) {
      for (const watched of [...place.watched]) {
        const { link, name, tell } = watched
        if (event.kind === 'link') {
          const same = link?.index === event.link.index
          if (event.link.name === name && !event.gone) become(watched, event.link)
          else if (same) become(watched, undefined)
        } else if (link?.index === event.index) tell(event.kind === 'address' ? 'addresses' : 'filters', link)
      }
    }
  }

  /** Looks at everything, because not all of it was heard. */
  private compare(place: Place): void {
    const watched = [...place.watched]
    const links = ask(
      place,
      watched.map(({ name }) => name),
    )
    watched.forEach((each, i) => {
      become(each, links[i])
      if (each.link === undefined) return
      each.tell('addresses', each.link)
      each.tell('filters', each.link)
    })
  }

  /** Puts what poll(2) needs in the order of the places. */
  private arrange(): void {
    const sockets = [...this.places.values()].map(({ socket }) => socket?.fd ?? -1)
    this.pollfds = Int32Array.from(sockets.flatMap(fd => [fd, POLL.IN]))
  }
}

/** Tells what the step from one state to the next means. */
function become(watched: Watched, next: Link | undefined): void {
  const { link: before, tell } = watched
  if (before !== undefined && before.index !== next?.index) {
    watched.link = undefined
    tell('gone', undefined)
  }
  const { link } = watched
  watched.link = next
  if (next === undefined) return
  if (link === undefined) {
    tell('back', next)
    return
  }
  if (link.running !== next.running) tell(next.running ? 'up' : 'down', next)
  if (link.mtu !== next.mtu) tell('mtu', next)
  if (link.mac !== next.mac) tell('mac', next)
}

/** The interfaces of these names as they are now. */
function ask({ namespace, socket }: Place, names: string[]): (Link | undefined)[] {
  const questions = socket === undefined ? undefined : rtnetlinkIn(namespace)
  try {
    return names.map(name => questions?.link(name))
  } finally {
    questions?.close()
  }
}

function inode(namespace: string): number {
  if (namespace === '') return 1
  return statSync(namespacePath(namespace), { throwIfNoEntry: false })?.ino ?? 0
}
