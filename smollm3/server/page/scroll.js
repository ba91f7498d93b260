// Keeps the end of a growing conversation in view, until the reader scrolls up.

export class StickyScroll {
  #scroller;
  #button;
  #last = 0;
  #sticks = true;

  /** @param {HTMLElement} scroller @param {HTMLElement} content @param {HTMLElement} button shown while away from the end */
  constructor(scroller, content, button) {
    this.#scroller = scroller;
    this.#button = button;
    scroller.addEventListener("scroll", () => this.#moved(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    const observer = new ResizeObserver(() => this.#grown());
    observer.observe(content);
    observer.observe(scroller);
  }

  get #distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  /** Only a move upwards lets go: text that grows under a resting reader does not count. */
  #moved() {
    const { scrollTop } = this.#scroller;
    if (this.#distance < 32) this.#sticks = true;
    else if (scrollTop < this.#last - 2) this.#sticks = false;
    this.#last = scrollTop;
    this.#button.hidden = this.#sticks || this.#distance < 160;
  }

  #grown() {
    if (this.#sticks) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#button.hidden = this.#sticks || this.#distance < 160;
  }

  toEnd() {
    this.#sticks = true;
    this.#grown();
  }

  toStart() {
    this.#scroller.scrollTop = 0;
    this.#sticks = false;
    this.#grown();
  }
}
