"""An order form in Tk. Each order becomes a line of the file that it was started with."""

import sys
import tkinter
from pathlib import Path

window = tkinter.Tk()
window.title("Order form")
window.geometry("360x200+880+20")
fields = []
for label in ("Name", "Pieces"):
    tkinter.Label(window, text=label).pack()
    fields.append(tkinter.Entry(window))
    fields[-1].pack()


def order() -> None:
    with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
        file.write(" ".join(field.get() for field in fields) + "\n")
    for field in fields:
        field.delete(0, tkinter.END)
    fields[0].focus_set()


tkinter.Button(window, text="Order", command=order).pack(fill="both", expand=True)
fields[0].focus_set()
window.mainloop()
